"""`vegrad predict`: rows of a table by a network that was trained on one."""

from __future__ import annotations

import argparse
import csv
import sys
from io import StringIO
from pathlib import Path

from vegrad.arrays.files import save_bytes
from vegrad.arrays.shown import SCREEN, shown, visible, whole
from vegrad.cli.outputs import check_new, check_writable
from vegrad.networks.mlp import MLP
from vegrad.networks.prediction import table_of

WRITTEN = (".csv", ".tsv", ".txt", "")
"""What a file of predictions may end in; "" of such as /dev/stdout."""


def run(options: argparse.Namespace) -> int:
    """Predict the rows of a table; return 0."""
    if options.out is not None:
        if Path(options.out).suffix.lower() not in WRITTEN:
            raise ValueError(f"--out must end in .csv, .tsv or .txt, not {shown(options.out)}")
        if not options.force:
            check_new([options.out], "FILE")
        check_writable(options.out)
    network = MLP.load(options.network)
    table = table_of(options.data, options.sheet)
    found = network.predict(table)
    text = StringIO()
    tabs = options.out is not None and Path(options.out).suffix.lower() == ".tsv"
    lines = csv.writer(text, delimiter="\t" if tabs else ",", lineterminator="\n")
    assert network.preparation is not None  # else nothing is predicted
    lines.writerow([network.preparation.target])
    lines.writerows([one] for one in found.tolist())  # the shortest that gives a number back
    told = (*table.told, *network.preparation.told(table))
    if options.out is None:
        said = text.getvalue()  # a file gets labels as they are, a terminal what it can show
        print(*(f"vegrad: {one}" for one in told), sep="\n", end="\n" * bool(told), file=sys.stderr)
        sys.stdout.write(whole(said) if sys.stdout.isatty() else said)
    else:
        save_bytes(options.out, text.getvalue().encode())
        print(*told, f"predictions: {visible(options.out, SCREEN)}", sep="\n")
    return 0


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `vegrad predict`."""
    add = parser.add_argument
    add("network", metavar="NETWORK", help="the file that vegrad train has saved")
    add("data", metavar="DATA", help="a table with the columns that were learnt from")
    add("--sheet", metavar="NAME", help="sheet of a .xlsx file (default: the first)")
    add("--out", metavar="FILE", help="a .csv, .tsv or .txt file to write (default: print)")
    add("--force", action="store_true", help="overwrite a file that exists")
