"""Model families as data: dimensions, tensor names, fused groups."""
