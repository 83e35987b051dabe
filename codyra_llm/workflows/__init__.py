"""The commands' work: training, evaluation, general ability, judging."""
