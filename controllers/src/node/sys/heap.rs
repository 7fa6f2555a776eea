//! What the C library's allocator keeps of memory that nobody uses.

/// All threads share three arenas from here on; to be called before there are any threads. Each arena keeps to itself what is
/// free in it, and there would be one for nearly every thread; one alone is waited for in a burst of work.
#[expect(unsafe_code, reason = "the allocator is told by its own call only")]
pub fn few_arenas() {
    #[cfg(target_env = "gnu")]
    // SAFETY: nothing is demanded but a known parameter; a value that it does not like is refused, which is as before.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 3);
    }
}

/// Free pages go back to the kernel, and pages of the program that were needed once (to begin, for a burst of work): what is
/// needed again is mapped again from the page cache, in a few microseconds. Whoever allocates meanwhile waits.
#[expect(unsafe_code, reason = "the allocator is told by its own call only")]
pub fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: nothing is demanded; it takes the allocator's own lock and touches free memory only.
    unsafe {
        libc::malloc_trim(0);
    }
    unmap_program();
}

/// Of memory that is mapped, the program is the most by far; the kernel maps sixteen pages around each that is touched.
#[expect(unsafe_code, reason = "memory is advised by address")]
fn unmap_program() {
    let Ok(maps) = std::fs::read_to_string("/proc/self/maps") else { return };
    let Ok(program) = std::fs::read_link("/proc/self/exe") else { return };
    for (start, length) in code(&maps, &program.to_string_lossy()) {
        // SAFETY: a private mapping of a file, never written to (it cannot be): every page comes back as it is in the file.
        let told = unsafe {
            rustix::mm::madvise(std::ptr::with_exposed_provenance_mut(start), length, rustix::mm::Advice::LinuxDontNeed)
        };
        if let Err(error) = told {
            tracing::debug!(%error, "the program stays mapped");
        }
    }
}

/// Where the code of a program is mapped: start and length, by the kernel's own list.
fn code(maps: &str, program: &str) -> Vec<(usize, usize)> {
    let mapping = |line: &str| {
        let mut words = line.splitn(6, ' ');
        let (range, rights) = (words.next()?, words.next()?);
        let path = words.nth(3)?.trim_start();
        let (start, end) = range.split_once('-')?;
        let (start, end) = (usize::from_str_radix(start, 16).ok()?, usize::from_str_radix(end, 16).ok()?);
        (rights == "r-xp" && path == program).then_some((start, end.checked_sub(start)?))
    };
    maps.lines().filter_map(mapping).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_code_of_a_program_is_what_can_be_run_and_not_written() {
        let maps = "\
55d0c0000000-55d0c0100000 r--p 00000000 fe:00 42    /usr/bin/applyd
55d0c0100000-55d0c0300000 r-xp 00100000 fe:00 42    /usr/bin/applyd
55d0c0300000-55d0c0310000 rw-p 00300000 fe:00 42    /usr/bin/applyd
7f0000000000-7f0000001000 r-xp 00000000 fe:00 43    /lib/libc.so.6
7f0000002000-7f0000003000 rw-p 00000000 00:00 0
7ffd00000000-7ffd00001000 r-xp 00000000 00:00 0     [vdso]
";
        assert_eq!(code(maps, "/usr/bin/applyd"), [(0x55d0_c010_0000, 0x20_0000)]);
        assert_eq!(code(maps, "/usr/bin/other"), []);
    }

    #[test]
    fn what_was_unmapped_is_mapped_again_when_it_is_needed() {
        // The kernel counts how often it had to map something.
        let faults = || {
            let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
            let fields = stat.rsplit(')').next().unwrap().split_whitespace();
            fields.clone().nth(7).unwrap().parse::<u64>().unwrap()
        };
        let during = |work: &dyn Fn()| {
            let before = faults();
            work();
            faults() - before
        };
        let looks = || drop(code(&std::fs::read_to_string("/proc/self/maps").unwrap(), ""));
        // Once for what is needed the first time.
        during(&looks);
        let (looking, unmapping) = (during(&looks), during(&unmap_program));
        assert!(unmapping > looking, "{unmapping} and {looking} times");
    }
}
