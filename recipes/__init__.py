"""Ready recipes, one YAML file each."""
