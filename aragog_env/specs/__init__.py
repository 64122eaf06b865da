"""What a user describes: workflow, model, GPU, cluster, workload, scenario, read from strict YAML."""
