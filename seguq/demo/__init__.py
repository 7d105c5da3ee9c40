"""The whole way, from images to a report, on images that ship with the package."""
