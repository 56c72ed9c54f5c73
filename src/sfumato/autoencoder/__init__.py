"""The first stage: pictures to latents and back (Rombach et al., 2022, section 3.1)."""
