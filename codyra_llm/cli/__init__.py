"""The commands, a module each; `codyra NAME` and scripts/ start them."""
