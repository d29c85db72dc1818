//! How the process gets its memory.

/// Makes the C library keep freed memory for the next tensor instead of returning it to the system.
///
/// Burn's CPU backend allocates every result anew. Above a threshold glibc maps fresh pages for that
/// and gives them back when the tensor dies, so every large operation pays for page faults. To be
/// called once, before the first tensor; does nothing where the C library is not glibc.
#[cfg_attr(
    all(target_os = "linux", target_env = "gnu"),
    expect(unsafe_code, reason = "mallopt is a C function")
)]
pub fn keep_freed_memory() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    for option in [libc::M_MMAP_THRESHOLD, libc::M_TRIM_THRESHOLD] {
        // SAFETY: mallopt takes two integers and touches nothing but the allocator's settings; it
        // returns 0 for a value that it does not accept, which leaves the default in force.
        let _accepted = unsafe { libc::mallopt(option, libc::c_int::MAX) };
    }
}
