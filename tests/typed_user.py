"""A user's script, which `mypy --strict` takes as it is: see test_types.py. It is not run."""

from __future__ import annotations

import nnsight_dream as nd

vlm = nd.load("demo")
octopus = nd.concept(vlm, "octopus", layer=1)
picture = nd.synthesize(vlm, octopus)
picture.image.save("octopus.png")
print(picture.label, picture.scores["attention"], picture.save("dreams") / "prototype.png")

pictures = nd.synthesize(vlm, [octopus, octopus - 0.5 * nd.concept(vlm, "fish", layer=1)], steps=5)
seeds = nd.synthesize(vlm, octopus, seed=[0, 1], canvas=nd.Pixels(32), pooling=nd.Max(), augment=nd.Shift())
for one in [*pictures[:1], *seeds]:
    print(one.image, one.history[-1])

words = nd.synthesize(vlm, nd.concept(vlm, ["fox", "owl"], layer=[1, 4]), settings="demo", seed=3)
for row in words.rows:
    print([one.site.layer for one in row])
words.grid(side=64).save("grid.png")

feature = nd.feature("demo", 3)
both = nd.synthesize(vlm, [feature, octopus], settings=nd.Settings.demo().but(steps=9, batch=2))
shown = nd.synthesize(vlm, feature, terms=nd.TotalVariation(0.1), progress=lambda step, scores: None)
verdict = nd.DemoJudge().judge(shown.image)[0]
print(verdict.top, verdict.rank("fox") + 1, len(both))

swept = nd.sweep(vlm, nd.jobs_of(["fox", ("calm", "", "calm sea")], [1, 4]), "store", settings=nd.Settings.demo())
rows = nd.results(swept.store)
print(len(rows), nd.wilson(3, 4), nd.cka)
