//! Network namespaces and veths of tasks.
