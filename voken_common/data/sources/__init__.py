"""Sources of images and videos: folders, lists, archives, TFDS, videos."""
