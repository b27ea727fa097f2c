"""Vision-language models: loading, family records, sites, prompts, reading, the check."""
