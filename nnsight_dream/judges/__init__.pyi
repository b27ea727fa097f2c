"""Where each public name of this package lies."""

from .desk import Asked as Asked
from .desk import Examiner as Examiner
from .desk import Summary as Summary
from .local import DemoExaminer as DemoExaminer
from .local import ZeroShotJudge as ZeroShotJudge
from .named import DemoJudge as DemoJudge
from .named import Judge as Judge
from .named import NamingJudge as NamingJudge
from .named import Verdict as Verdict
from .openai import OpenAIJudge as OpenAIJudge
from .tally import Agreement as Agreement
from .tally import agreement as agreement
from .tally import grader_agreement as grader_agreement
from .tally import results as results
from .vlm import VLMJudge as VLMJudge
