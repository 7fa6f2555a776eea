//! Named, bind and tmpfs volumes on this machine.
