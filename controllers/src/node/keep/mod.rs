//! The companion process that outlives applyd: log pipes, name server sockets, listeners.
