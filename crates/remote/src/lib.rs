//! Registries elsewhere: images and artifacts pushed to them and pulled from them.
