"""The published weights: sizes, accuracies and where to get them.

python tools/model_zoo.py                          all 54, as a table
python tools/model_zoo.py 'xcit_*_p8_*'            those with such a name or alias
python tools/model_zoo.py --format json crossvit*  everything that is known, for programs
python tools/model_zoo.py --check                  count parameters and FLOPs anew and compare
python tools/model_zoo.py --write                  renew the tables in docs/model_zoo.md and the READMEs
"""

import dataclasses
import fnmatch
import json
import math
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from passl_xcit.modeling.zoo import entries, normal_form  # noqa: E402
from passl_xcit.utils.command_line import make_parser  # noqa: E402
from passl_xcit.utils.errors import ConfigError, exit_with_one_line  # noqa: E402
from passl_xcit.utils.startup import prepare_paddle  # noqa: E402

FAMILIES = {"xcit": "XCiT", "crossvit": "CrossViT", "regnety": "RegNetY"}
FILES = ("docs/model_zoo.md", "README.md", "README_cn.md")
BLOCK = re.compile(r"(<!-- model_zoo:begin (\w+) -->\n).*?(<!-- model_zoo:end -->)", re.DOTALL)
README_HEADERS = {
    "en": (
        ("model", "Params (M)", "Flops (G), 224 / 384", "224", "224 distilled", "384 distilled"),
        ("model", "Params (M)", "Flops (G)", "top-1 / top-5", "evaluation"),
    ),
    "zh": (
        ("模型", "参数量 (M)", "Flops (G)，224 / 384", "224", "224 蒸馏", "384 蒸馏"),
        ("模型", "参数量 (M)", "Flops (G)", "top-1 / top-5", "评估方式"),
    ),
}


def parse_args(argv):
    parser = make_parser(__doc__)
    parser.add_argument("pattern", nargs="?", default="*", help="names, with * and ? (default: all)")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--format", choices=FORMATS, default="text", help="how to print the table (default: text)")
    what.add_argument("--check", action="store_true", help="compare with the real models; exit code 1 if a row differs")
    what.add_argument("--write", action="store_true", help="renew the tables in docs/ and in the READMEs")
    args = parser.parse_args(argv)
    if args.write and args.pattern != "*":
        parser.error("--write takes no pattern: it writes every row")
    return args


def select(pattern):
    """The entries of which a name or alias matches `pattern`; ConfigError if there are none."""
    forms = (normal_form(pattern), pattern.lower())  # in the latter '-' still stands for a range in brackets
    found = [entry for entry in entries() if any(fnmatch.filter(map(normal_form, entry.names), form) for form in forms)]
    if not found:
        raise ConfigError(f"no weight has a name or alias like '{pattern}'; without a pattern all are listed")
    return found


# Cells.


def millions(entry):
    return f"{entry.params / 1e6:.2f}"


def giga(entry):
    return f"{entry.flops / 1e9:.2f}"


def timm_result(entry):
    """The result by the one publisher who put every weight through the pipeline to evaluate it with."""
    return next(item for item in entry.results if item.by == "timm" and item.pipeline == entry.evaluation)


def accuracies(result):
    return f"{result.acc1:.1f}" if result.acc5 is None else f"{result.acc1:.2f} / {result.acc5:.2f}"


def difference(pipeline, usual):
    """What `pipeline` does otherwise than `usual`, in parentheses; "" if nothing."""
    parts = zip(str(pipeline).split(", "), str(usual).split(", "))
    differing = ", ".join(part for part, usual_part in parts if part != usual_part)
    return f" ({differing})" if differing else ""


# Formats.


def text(found):
    """A table of at most 120 columns; addresses are too long for it."""
    rows = [("Model", "Params (M)", "Flops (G)", "Top-1", "Top-5", "Evaluation", "Weights")]
    for entry in found:
        result, file = timm_result(entry), entry.weights[0]
        measured = (f"{result.acc1:.2f}", f"{result.acc5:.2f}", str(result.pipeline))
        rows.append((entry.name, millions(entry), giga(entry), *measured, f"{file.dialect} {file.sha256}".strip()))
    name, *numbers, pipeline, _ = (max(map(len, column)) for column in zip(*rows))
    form = "  ".join([f"{{:{name}}}", *(f"{{:>{width}}}" for width in numbers), f"{{:{pipeline}}}", "{}"])
    note = "Top-1, Top-5: timm's. What others measured, and addresses: --format markdown or json"
    return "\n".join([*(form.format(*row) for row in rows), "", note])


def markdown(found):
    """A table for each family, with every accuracy and address."""
    return "\n\n".join(f"## {family}\n\n{family_table(members)}" for family, members in families(found))


def families(found):
    for prefix, family in FAMILIES.items():
        members = [entry for entry in found if entry.name.startswith(f"{prefix}_")]
        if members:
            yield family, members


def family_table(members):
    publishers = list(dict.fromkeys(result.by for entry in members for result in entry.results))
    rows = []
    for entry in members:
        measured = ("; ".join(measured_by(publisher, entry)) for publisher in publishers)
        links = ", ".join(f"[{file.dialect}]({file.url})" for file in entry.weights)
        rows.append((f"`{entry.name}`", millions(entry), giga(entry), str(entry.evaluation), *measured, links))
    return markdown_table(("Model", "Params (M)", "Flops (G)", "Evaluation", *publishers, "Weights"), rows)


def measured_by(publisher, entry):
    for result in entry.results:
        if result.by == publisher:
            yield accuracies(result) + difference(result.pipeline, entry.evaluation)


def markdown_table(header, rows):
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (header, ["---"] * len(header), *rows))


def as_json(found):
    """All that zoo.yaml says, with pipelines and sources in place of their names."""
    return json.dumps([dataclasses.asdict(entry) for entry in found], indent=2)


FORMATS = {"text": text, "markdown": markdown, "json": as_json}


# Tables in the documentation.


def all_tables():
    return markdown(entries())


def others_table():
    """The files of `other_weights`."""
    rows = []
    for entry in entries():
        for other in entry.other_weights:
            measured = (accuracies(other.result), str(other.result.pipeline)) if other.result else ("", "")
            link = f"[{Path(other.file.url).name}]({other.file.url})"
            rows.append((f"`{entry.name}`", other.by, *measured, link))
    return markdown_table(("Model", "By", "Top-1 / top-5", "Evaluation", "File"), rows)


def aliases_table():
    rows = [(f"`{entry.name}`", ", ".join(f"`{alias}`" for alias in entry.aliases)) for entry in entries()]
    return markdown_table(("Model", "Also called"), rows)


def readme_tables(language):
    """One row for each architecture: XCiT with its three weights, then the others."""
    xcit_header, header = README_HEADERS[language]
    by_family = dict(families(entries()))
    xcit = markdown_table(xcit_header, xcit_rows(by_family.pop("XCiT")))
    rows = [
        (f"`{entry.name}`", millions(entry), giga(entry), accuracies(timm_result(entry)), str(entry.evaluation))
        for members in by_family.values()
        for entry in members
    ]
    return f"{xcit}\n\n{markdown_table(header, rows)}"


def xcit_rows(members):
    by_name = {entry.name: entry for entry in members}
    for backbone in dict.fromkeys(entry.backbone for entry in members):
        trio = [by_name[f"{backbone}_{kind}"] for kind in ("224", "224_dist", "384_dist")]
        flops = f"{giga(trio[0])} / {giga(trio[2])}"
        yield (f"`{backbone}`", millions(trio[0]), flops, *(f"{timm_result(entry).acc1:.2f}" for entry in trio))


BLOCKS = {
    "all": all_tables,
    "others": others_table,
    "aliases": aliases_table,
    "readme": lambda: readme_tables("en"),
    "readme_cn": lambda: readme_tables("zh"),
}


def with_tables(page):
    """The text `page` with the tables that its markers name: <!-- model_zoo:begin NAME --> <!-- model_zoo:end -->."""
    return BLOCK.sub(lambda found: f"{found[1]}\n{BLOCKS[found[2]]()}\n\n{found[3]}", page)


def write(root=ROOT):
    """Renew the tables in FILES, below the folder `root`."""
    for name in FILES:
        path = root / name
        path.write_text(with_tables(path.read_text(encoding="utf-8")), encoding="utf-8")


# Comparison with the real models.


def differences(found):
    """Lines that say where an entry's numbers are not those of the model that its backbone names."""
    from passl_xcit.modeling.flops import count_flops

    counted = {backbone: count_parameters(backbone) for backbone in dict.fromkeys(entry.backbone for entry in found)}
    for entry in found:
        flops = count_flops(entry.backbone, entry.evaluation.size)
        for what, listed, right in (("params", entry.params, counted[entry.backbone]), ("flops", entry.flops, flops)):
            if listed != right:
                yield f"{entry.name}: {what} {listed:,} in zoo.yaml, {right:,} counted"


def count_parameters(backbone):
    """Trainable parameters of the backbone with a head of 1000 classes."""
    import paddle

    from passl_xcit.modeling.heads import SwinTransformerClsHead
    from passl_xcit.utils.registry import BACKBONES

    with paddle.LazyGuard():  # shapes without values
        layer = BACKBONES.build({"name": backbone})
        head = SwinTransformerClsHead(layer.num_features)
    parameters = [*layer.parameters(), *head.parameters()]
    return sum(math.prod(value.shape) for value in parameters if not value.stop_gradient)


def main(argv=None):
    args = parse_args(argv)
    if args.write:
        write()
        return 0
    found = select(args.pattern)
    if args.check:
        prepare_paddle()
        lines = list(differences(found))
        print("\n".join(lines) or f"{len(found)} rows checked")
        return 1 if lines else 0
    print(FORMATS[args.format](found))
    return 0


def console():
    """The command `passl-xcit-model-zoo`."""
    exit_with_one_line(main)


if __name__ == "__main__":
    console()
