"""`sfumato schema`: the JSON schema of recipes."""


def command() -> None:
    """Print the schema; editors with YAML support complete and check recipes with it."""
    import json

    from sfumato.training.recipe import schema

    print(json.dumps(schema(), indent=1))
