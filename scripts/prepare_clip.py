"""Checks a copy of the pictures of X-TAIL and MTIL: what was found where, how much, and whether it opens.

python scripts/prepare_clip.py --help
"""

from codyra_llm.cli.prepare import command_of_pictures
from codyra_llm.command import main

if __name__ == "__main__":
    main(command_of_pictures)
