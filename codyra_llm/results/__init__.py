"""results.json as types, and where its figures come from."""
