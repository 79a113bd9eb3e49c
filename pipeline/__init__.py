"""One slide, stage by stage: read, find tissue, predict, label, measure, show. Knows nothing of Prefect."""
