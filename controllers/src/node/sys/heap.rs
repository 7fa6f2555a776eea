//! What the C library's allocator keeps of memory that nobody uses.

/// All threads share one arena from here on; to be called before there are any. Each arena keeps to itself what is free
/// in it, and there would be one for nearly every thread: memory for a speed that nothing here needs.
#[expect(unsafe_code, reason = "the allocator is told by its own call only")]
pub fn one_arena() {
    #[cfg(target_env = "gnu")]
    // SAFETY: nothing is demanded but a known parameter; a value that it does not like is refused, which is as before.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
    }
}

/// Free pages go back to the kernel. Whoever allocates meanwhile waits.
#[expect(unsafe_code, reason = "the allocator is told by its own call only")]
pub fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: nothing is demanded; it takes the allocator's own lock and touches free memory only.
    unsafe {
        libc::malloc_trim(0);
    }
}
