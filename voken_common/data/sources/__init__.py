"""Where images and videos come from: folders, lists, archives, TFDS, videos."""
