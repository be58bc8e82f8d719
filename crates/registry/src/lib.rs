//! The embedded OCI registry: serves the store on this machine.
