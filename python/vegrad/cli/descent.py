"""x"""


def run(options):
    return 0


def add_options(parser):
    from vegrad.cli.options import add_common_options

    add_common_options(parser.add_argument_group("output"))
