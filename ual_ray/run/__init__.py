"""What all steps of a run share: step runner, stage cache, output folder, cluster, terminal."""
