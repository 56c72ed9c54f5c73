"""Names of the samplers, for help and errors that must not wait for torch."""

SAMPLERS = ("ddim", "heun", "dpmpp_2m")
