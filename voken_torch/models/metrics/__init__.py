"""Networks of metrics: FID's Inception and I3D under their published names."""
