#!/usr/bin/env bash
# From a table of support tickets to a model that answers in the shop's words; in the folder where it is started.
#   bash examples/tickets.sh                  # SmolLM2-135M, two minutes or so on two CPU cores
#   MODEL=meta-llama/Llama-3.2-1B-Instruct bash examples/tickets.sh --model.dtype bfloat16
set -euo pipefail
here="$(cd "$(dirname "$0")" && pwd)"
codyra init tickets --data "$here/tickets.csv" --columns prompt=question,answer=reply \
    --model "${MODEL:-smollm2-135m-instruct}"
codyra train --config tickets/config.yaml "$@"
echo "Is there a warranty on the toaster?" | codyra chat runs/tickets/model --max_new_tokens 60
