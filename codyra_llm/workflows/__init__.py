"""What a person starts: training, evaluation, general ability, judging."""
