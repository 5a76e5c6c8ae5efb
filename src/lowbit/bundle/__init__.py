"""What comes out: the manifest, the loaded bundle, the report and the card. Users import `Bundle` from `lowbit`."""
