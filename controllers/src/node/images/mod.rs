//! Images: pulled from registries or imported from archives, unpacked through containerd.
