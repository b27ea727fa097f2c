"""Refusals: how models say that they will not answer, or were shown nothing, in the languages that they speak."""

from __future__ import annotations

import re
import unicodedata

_LATER = 240  # characters within which a plain refusal may come after other words


# what may stand before: quotes, stars, and short words of politeness
_OPENING = (
    r"\W*(?:(?:hmm+|well|oh|uh|um|ah|hi|hello|hey|no|ok|okay|yes|but|however|thanks|thank you[^.,!]{0,60})\W+){0,3}"
)


_NOT = (
    r"(?:can(?:no|')t|can not|cant|could(?:n't| not)|am unable to|am not able to|am not (?:allowed|permitted) to"
    r"|won't|will not|wouldn't|would (?:rather|prefer) not(?: to)?|do not|don't|am not going to"
    r"|(?:must|have to|need to|will)(?: \w+)? (?:decline|refuse)(?: to)?|(?:respectfully "
    r"|politely )?(?:decline|refuse) to)"
)


_ACT = (
    r"(?:help|assist|identify|comply|provide|answer|name|fulfil+|respond|discuss|engage|continue|participate"
    r"|do (?:that|this|so))"
)


_PICTURE = r"(?:the |this |that |any |your |an? )?(?:image|picture|photo|attachment)s?"


_ENGLISH = (
    r"(?:i'm |i am |we're |we are |i'm afraid |i am afraid )?(?:very |so |truly |really |terribly )?"
    r"(?:sorry\b|unable to\b|not able to\b)",
    r"i(?:'m| am) (?:afraid|sorry)(?: that)? (?:i|we|this|that|it)\b",
    r"(?:please accept )?(?:my |our )(?:sincere )?apolog(?:y|ies)\b|apologies\b|apologi[sz]ing\b",
    r"(?:i|we) (?:\w+ly |must |do )?apologi[sz]e\b",
    r"as an? (?:\w+[ -]){0,4}(?:ai|assistant|language model|llm)\b",
    r"i(?:'m| am) (?:just |only |merely )?an? (?:\w+[ -]){0,3}(?:ai|language model|text-based)\b",
    r"(?:unfortunately|regrettably|sadly|i regret that)\W+(?:i|we|this|that|your|the (?:request|image|content))\b",
    rf"(?:i|we)(?:'m| am| are)? {_NOT} (?:\w+ ){{0,2}}{_ACT}\b",
    r"(?:i|we)(?:'m| am| are) not (?:comfortable|allowed|permitted|authorized|authorised|supposed|going to)\b",
    r"(?:i|we) (?:do not|don't|would not|wouldn't) feel comfortable\b",
    r"(?:i|we) (?:must|have to|need to|will have to)(?: \w+)? (?:decline|refuse)\b|(?:i"
    r"|we) (?:\w+ly )?(?:decline|refuse)\b",
    r"(?:i|we)(?:'d| would) (?:rather|prefer) not\b",
    rf"(?:can(?:no|')t|can not|unable to|not able to|won't|will not|must decline to) (?:\w+ ){{0,2}}{_ACT}\b",
    r"(?:this|that|it)(?:'s| is) (?:not )?(?:something|anything) (?:that )?i (?:can(?:no|')?t|can|am unable to"
    r"|won't)\b",
    r"(?:this|that|your|the) (?:request|prompt|image|picture|photo|content|response|output|question)[^.]{0,60}"
    r"(?:violat|against|blocked|filtered|flagged|not allowed|not permitted|inappropriate|cannot be (?:answered"
    r"|processed)"
    r"|can't be (?:answered|processed))",
    r"(?:request|content|response|output) (?:was |is |has been )?(?:denied|refused|blocked|filtered|flagged"
    r"|rejected)\b",
    r"(?:(?:it|this|that)(?:'s| is) )?(?:against|due to|because of|per|under) (?:my|our|the|openai's|safety"
    r"|content|usage) (?:\w+ ){0,3}"
    r"(?:guidelines?|polic(?:y|ies)|programming|restrictions?|rules)\b",
    # nothing was seen
    rf"(?:i|we) {_NOT} (?:\w+ ){{0,2}}(?:see|view|access|open|display|process|analy[sz]e|interpret"
    rf"|look at) {_PICTURE}",
    rf"(?:i|we) (?:don't|do not|can't|cannot) see (?:an?|any|the) {_PICTURE}",
    r"(?:there (?:is|was|seems to be|appears to be) no|i see no|no) (?:image|picture|photo|attachment)s?\b"
    r"(?=.{0,40}\b(?:attached|provided|uploaded|included|here|given|shared|visible|found|available|message|was)\b)",
    rf"(?:please|could you|can you)(?: \w+)? (?:upload|attach|provide|share|send|re-?upload|resend"
    rf"|include) {_PICTURE}",
    rf"(?:the )?{_PICTURE} (?:did not|didn't|failed to|does not seem to have|was not|is not|isn't|wasn't) (?:\w+ )?"
    r"(?:upload|load|come through|attach|provide|include|visible to me|available)",
)


_SPEAKS_OF = r"(?:\w+ ){0,6}"


_OTHERS = (
    # Romance
    r"(?:lo siento|lo lamento|lamento|disculp[ae]|perd[oó]n[ae]?(?: ?,| pero)|desafortunadamente|lamentablemente)\b",
    r"no (?:puedo|podemos|me es posible|estoy en condiciones|tengo permitido)\b",
    r"como (?:un |una )?(?:modelo|ia\b|inteligencia|asistente|assistente)",
    r"(?:d[eé]sol[eé]e?|je suis (?:vraiment |sinc[eè]rement |tr[eè]s )?(?:d[eé]sol|navr)|malheureusement|je regrette"
    r"|je m'excuse|(?:veuillez )?m'excuser|toutes mes excuses)",
    r"je (?:ne peux|ne puis|ne suis pas (?:en mesure|capable|autoris)|refuse)|il (?:m'est"
    r"|ne m'est pas) (?:im)?possible",
    r"en tant qu(?:e |')(?:\w+ )?(?:ia\b|intelligence|mod[eè]le|assistant)",
    r"(?:mi dispiace|mi spiace|spiacente|purtroppo|non posso|non sono in grado|non mi [eè] possibile"
    r"|in quanto (?:ia|modello))",
    r"come (?:ia\b|modello|intelligenza|assistente)",
    r"(?:desculp[ea]|sinto muito|infelizmente|pe[cç]o desculpa|n[aã]o posso|n[aã]o consigo (?:ajudar"
    r"|identificar|responder)"
    r"|n[aã]o estou autorizad)",
    r"(?:[iî]mi pare r[aă]u|din p[aă]cate|nu pot|ho sento|ho lamento|no puc\b)",
    # Germanic
    r"(?:(?:es )?tut mir(?: \w+)? leid|leider\b|entschuldigung|entschuldigen sie|verzeihung|bedaure"
    r"|ich bedau(?:e)?re)",
    rf"ich (?:kann|darf|werde|m[oö]chte|bin) {_SPEAKS_OF}nicht\b|ich bin nicht|(?:dabei|das"
    rf"|damit) kann ich {_SPEAKS_OF}nicht",
    r"als (?:eine? )?(?:ki\b|k[uü]nstliche|sprachmodell|ki-|ai\b|taalmodel)",
    rf"(?:het spijt me|helaas\b|ik kan {_SPEAKS_OF}niet\b)",
    r"(?:tyv[aä]rr|jag kan (?:\w+ ){0,2}inte|f[oö]rl[aå]t\b|beklager|desv[aæ]rre|dessverre"
    r"|jeg kan (?:\w+ ){0,2}ikke|undskyld"
    r"|jeg beklager|[þt]v[ií] mi[ðd]ur)",
    # Slavic, Baltic
    r"(?:извините|простите|прошу прощения|к сожалению|сожалею|я не могу|не могу|как (?:ии|языковая|искусственн))",
    r"(?:вибачте|пробачте|на жаль|перепрошую|я не можу|не можу|съжалявам|за съжаление|не мога|жао ми је|нажалост)",
    r"(?:przepraszam|przykro mi|niestety|nie mog[eę]|jako (?:model|sztuczna|ai))",
    r"(?:omlouv[aá]m se|je mi l[ií]to|bohu[zž]el|nemohu|promi[nň]te|ospravedl[nň]|prep[aá][cč]te|[zž]ia[lľ]"
    r"|nem[oô][zž]em)",
    r"(?:[zž]ao mi je|na[zž]alost|ne mogu\b|oprostite|atsipra[sš]au|atvainojiet|diem[zž][eē]l)",
    # others
    r"(?:valitettavasti|pahoittelen|anteeksi|en voi\b|vabandust|kahjuks)",
    r"(?:sajn[aá]l(?:om|juk)|sajnos|eln[eé]z[eé]st|nem (?:tudok|seg[ií]thetek)|bocs[aá]nat)",
    r"(?:[uü]zg[uü]n[uü]m|maalesef|[oö]z[uü]r dilerim|kusura bakma|yard[ıi]mc[ıi] olam)",
    r"(?:λυπάμαι|λυπαμαι|συγγνώμη|συγγνωμη|δυστυχώς|δυστυχως|δεν μπορώ|δεν μπορω)",
    r"(?:maaf\b|mohon maaf|sayangnya|saya tidak (?:bisa|dapat|boleh)|xin l[oỗ]i|r[aấ]t ti[eế]c|t[oô]i kh[oô]ng th[eể]"
    r"|paumanhin|pasensya|samahani)",
    r"(?:עצוב לי|מצטער|סליחה|לצערי|אני לא יכול|איני יכול)",
    r"(?:عذرا(?!ء)|(?:آسف|اسف)(?:ة|ون)?\b|أعتذر|اعتذر|للأسف|للاسف|لا أستطيع|لا استطيع|لا يمكنني|معذرة|متاسف"
    r"|متأسف|ببخشید|نمی.?توانم|معذرت)",
    r"(?:क्षमा (?:क|चाह)|माफ़ी|माफ़ क|माफ क|माफी|मुझे खेद|मुझे अफ़सोस|खेद है|मैं .{0,60}नहीं (?:कर )?सकत)",
    r"(?:দুঃখিত|মাফ করবেন|மன்னிக்கவும்|క్షమించండి|ക്ഷമിക്കണം|ಕ್ಷಮಿಸಿ|માફ કરશો|ਮਾਫ਼ ਕਰਨਾ|ขออภัย|ขอโทษ)",
    r"(?:很|非常|十分|实在|真的|實在)?(?:抱歉|对不起|對不起)|(?:很|非常)(?:遗憾|遺憾)|不好意思|(?:我"
    r"|本人)?(?:无法|無法|不能|不可以|不便|拒绝|拒絕)"
    r"|作为(?:一个|一名)?(?:人工智能|ai|语言模型|大型)|作為(?:一個)?(?:人工智慧|ai|語言模型)",
    r"申し訳|すみません|ごめんなさい|恐れ入りますが|恐縮ですが|残念ながら|お(?:答え|手伝い"
    r"|応え)(?:する(?:こと)?(?:は|が))?でき(?:ません|ない)"
    r"|(?:その|この)?(?:ご要望|ご質問|画像)に(?:は)?お?(?:答え|応え|対応)",
    r"죄송|미안|유감(?:스럽|이지만)|송구|(?:도와|답변|대답|식별).{0,12}수 (?:없|가 없)",
)


_WAYS = unicodedata.normalize("NFC", "|".join((*_ENGLISH, *_OTHERS)))


_START = re.compile(f"{_OPENING}(?:{_WAYS})", re.IGNORECASE)


_ANYWHERE = re.compile(
    r"\b(?:i|we) (?:can(?:no|')t|can not|am unable to|am not able to|won't|will not) "
    r"(?:help|assist)(?: you)? (?:with|you|in)\b"
    r"|\b(?:can(?:no|')t|unable to|won't) comply\b|\bcan(?:no|')t fulfil+ (?:this|that|your)\b",
    re.IGNORECASE,
)


def refuses(text: str) -> bool:
    """Whether a text declines to answer, or says that no picture came; not whether it merely cannot tell.

    >>> refuses("Lo siento, no puedo ayudar con eso."), refuses("I can't tell."), refuses("Octopus")
    (True, False, False)
    """
    plain = unicodedata.normalize("NFC", text[:1000]).strip().replace("’", "'").replace("‘", "'").replace("`", "'")
    return bool(_START.match(plain) or _ANYWHERE.search(plain[:_LATER]))
