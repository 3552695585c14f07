"""Stage 2: from uncertainty to a smoothing value alpha per row."""

from ual_ray.smooth.maps import assign_alpha

__all__ = ["assign_alpha"]
