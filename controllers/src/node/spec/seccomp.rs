//! The default system call filter: Docker's allow-list, as data.
//!
//! Everything that is not listed fails with EPERM. What a capability allows is listed only for containers that have
//! it, and `clone3` fails with ENOSYS, so that C libraries fall back to `clone`, whose flags a filter can see. Facts
//! after the default profile of Docker 28 (io_uring is not on it since 25).

use serde_json::{Value, json};

use super::capabilities::Capabilities;

/// Allowed for every container.
const ALWAYS: &str = "
    accept accept4 access adjtimex alarm bind brk cachestat capget capset chdir chmod chown chown32 clock_adjtime
    clock_adjtime64 clock_getres clock_getres_time64 clock_gettime clock_gettime64 clock_nanosleep
    clock_nanosleep_time64 close close_range connect copy_file_range creat dup dup2 dup3 epoll_create epoll_create1
    epoll_ctl epoll_ctl_old epoll_pwait epoll_pwait2 epoll_wait epoll_wait_old eventfd eventfd2 execve execveat exit
    exit_group faccessat faccessat2 fadvise64 fadvise64_64 fallocate fanotify_mark fchdir fchmod fchmodat fchmodat2
    fchown fchown32 fchownat fcntl fcntl64 fdatasync fgetxattr flistxattr flock fork fremovexattr fsetxattr fstat
    fstat64 fstatat64 fstatfs fstatfs64 fsync ftruncate ftruncate64 futex futex_requeue futex_time64 futex_wait
    futex_waitv futex_wake futimesat get_robust_list get_thread_area getcpu getcwd getdents getdents64 getegid
    getegid32 geteuid geteuid32 getgid getgid32 getgroups getgroups32 getitimer getpeername getpgid getpgrp getpid
    getppid getpriority getrandom getresgid getresgid32 getresuid getresuid32 getrlimit getrusage getsid getsockname
    getsockopt gettid gettimeofday getuid getuid32 getxattr getxattrat inotify_add_watch inotify_init inotify_init1
    inotify_rm_watch io_cancel io_destroy io_getevents io_pgetevents io_pgetevents_time64 io_setup io_submit ioctl
    ioprio_get ioprio_set ipc kill landlock_add_rule landlock_create_ruleset landlock_restrict_self lchown lchown32
    lgetxattr link linkat listen listxattr listxattrat llistxattr _llseek lremovexattr lseek lsetxattr lstat lstat64
    madvise map_shadow_stack membarrier memfd_create memfd_secret mincore mkdir mkdirat mknod mknodat mlock mlock2
    mlockall mmap mmap2 mprotect mq_getsetattr mq_notify mq_open mq_timedreceive mq_timedreceive_time64 mq_timedsend
    mq_timedsend_time64 mq_unlink mremap mseal msgctl msgget msgrcv msgsnd msync munlock munlockall munmap
    name_to_handle_at nanosleep newfstatat _newselect open openat openat2 pause pidfd_open pidfd_send_signal pipe pipe2
    pkey_alloc pkey_free pkey_mprotect poll ppoll ppoll_time64 prctl pread64 preadv preadv2 prlimit64 process_mrelease
    process_vm_readv process_vm_writev pselect6 pselect6_time64 ptrace pwrite64 pwritev pwritev2 read readahead
    readlink readlinkat readv recv recvfrom recvmmsg recvmmsg_time64 recvmsg remap_file_pages removexattr
    removexattrat rename renameat renameat2 restart_syscall rmdir rseq rt_sigaction rt_sigpending rt_sigprocmask
    rt_sigqueueinfo rt_sigreturn rt_sigsuspend rt_sigtimedwait rt_sigtimedwait_time64 rt_tgsigqueueinfo
    sched_get_priority_max sched_get_priority_min sched_getaffinity sched_getattr sched_getparam sched_getscheduler
    sched_rr_get_interval sched_rr_get_interval_time64 sched_setaffinity sched_setattr sched_setparam
    sched_setscheduler sched_yield seccomp select semctl semget semop semtimedop semtimedop_time64 send sendfile
    sendfile64 sendmmsg sendmsg sendto set_robust_list set_thread_area set_tid_address setfsgid setfsgid32 setfsuid
    setfsuid32 setgid setgid32 setgroups setgroups32 setitimer setpgid setpriority setregid setregid32 setresgid
    setresgid32 setresuid setresuid32 setreuid setreuid32 setrlimit setsid setsockopt setuid setuid32 setxattr
    setxattrat shmat shmctl shmdt shmget shutdown sigaltstack signalfd signalfd4 sigprocmask sigreturn socketcall
    socketpair splice stat stat64 statfs statfs64 statx symlink symlinkat sync sync_file_range syncfs sysinfo tee
    tgkill time timer_create timer_delete timer_getoverrun timer_gettime timer_gettime64 timer_settime timer_settime64
    timerfd_create timerfd_gettime timerfd_gettime64 timerfd_settime timerfd_settime64 times tkill truncate truncate64
    ugetrlimit umask uname unlink unlinkat uretprobe utime utimensat utimensat_time64 utimes vfork vmsplice wait4
    waitid waitpid write writev";

/// Allowed with any of these capabilities.
const WITH: [(&str, &str); 14] = [
    ("DAC_READ_SEARCH", "open_by_handle_at"),
    (
        "SYS_ADMIN",
        "bpf clone clone3 fanotify_init fsconfig fsmount fsopen fspick listmount lookup_dcookie lsm_get_self_attr
         lsm_list_modules lsm_set_self_attr mount mount_setattr move_mount open_tree perf_event_open quotactl
         quotactl_fd setdomainname sethostname setns statmount syslog umount umount2 unshare",
    ),
    ("SYS_BOOT", "reboot"),
    ("SYS_CHROOT", "chroot"),
    ("SYS_MODULE", "delete_module finit_module init_module"),
    ("SYS_PACCT", "acct"),
    ("SYS_PTRACE", "kcmp pidfd_getfd process_madvise"),
    ("SYS_RAWIO", "ioperm iopl"),
    ("SYS_TIME", "clock_settime clock_settime64 settimeofday stime"),
    ("SYS_TTY_CONFIG", "vhangup"),
    ("SYS_NICE", "get_mempolicy mbind set_mempolicy set_mempolicy_home_node"),
    ("SYSLOG", "syslog"),
    ("BPF", "bpf"),
    ("PERFMON", "perf_event_open"),
];

/// The personalities that an ordinary program may ask for: Linux, 32 bit, uname 2.6, both, and "which one have I?".
const PERSONALITIES: [u64; 5] = [0x0, 0x8, 0x20000, 0x20008, 0xffff_ffff];
/// VMs' host sockets: they have no namespaces, so a container could reach the machine's.
const AF_VSOCK: u64 = 40;
/// `CLONE_NEW{NS,CGROUP,UTS,IPC,USER,PID,NET}`: making namespaces needs SYS_ADMIN.
const CLONE_NEW: u64 = 0x7e02_0000;
const EPERM: u64 = 1;
const ENOSYS: u64 = 38;

/// The `linux.seccomp` part of a runtime spec, for a process with these capabilities on this architecture (as
/// `std::env::consts::ARCH` names it).
pub(super) fn default_filter(capabilities: &Capabilities, arch: &str) -> Value {
    let (architectures, extra): (&[&str], &str) = match arch {
        "x86_64" => (&["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"], "arch_prctl modify_ldt"),
        "aarch64" => (
            &["SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM"],
            "arm_fadvise64_64 arm_sync_file_range breakpoint cacheflush set_tls sync_file_range2",
        ),
        "riscv64" => (&["SCMP_ARCH_RISCV64"], "riscv_flush_icache riscv_hwprobe"),
        "powerpc64" => (&["SCMP_ARCH_PPC64LE"], "swapcontext sync_file_range2"),
        // The runtimes then filter for the native architecture alone.
        _ => (&[], ""),
    };
    let with = WITH.iter().filter(|(capability, _)| capabilities.contains(capability)).map(|(_, names)| *names);
    let mut names: Vec<&str> = [ALWAYS, extra].into_iter().chain(with).flat_map(str::split_whitespace).collect();
    names.sort_unstable();
    names.dedup();

    let when = |name: &str, op: &str, value: u64, value_two: u64| {
        json!({
            "names": [name], "action": "SCMP_ACT_ALLOW",
            "args": [{"index": 0, "value": value, "valueTwo": value_two, "op": op}],
        })
    };
    let mut rules = vec![json!({"names": names, "action": "SCMP_ACT_ALLOW"})];
    rules.push(when("socket", "SCMP_CMP_NE", AF_VSOCK, 0));
    rules.extend(PERSONALITIES.map(|personality| when("personality", "SCMP_CMP_EQ", personality, 0)));
    if !capabilities.contains("SYS_ADMIN") {
        rules.push(when("clone", "SCMP_CMP_MASKED_EQ", CLONE_NEW, 0));
        rules.push(json!({"names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": ENOSYS}));
    }
    json!({
        "defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": EPERM,
        "architectures": architectures, "syscalls": rules,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allowed(filter: &Value) -> Vec<&str> {
        filter["syscalls"][0]["names"].as_array().unwrap().iter().map(|n| n.as_str().unwrap()).collect()
    }

    #[test]
    fn what_a_capability_allows_comes_with_it_alone() {
        let none = default_filter(&Capabilities::new(), "x86_64");
        let admin = default_filter(&Capabilities::from(["SYS_ADMIN", "SYS_TIME"]), "x86_64");
        for name in ["mount", "unshare", "clone3", "settimeofday"] {
            assert!(!allowed(&none).contains(&name), "{name}");
            assert!(allowed(&admin).contains(&name), "{name}");
        }
        for name in ["io_uring_setup", "keyctl", "add_key", "kexec_load", "userfaultfd", "swapon", "pivot_root"] {
            assert!(!allowed(&admin).contains(&name), "{name}");
        }
        assert!(none["syscalls"].as_array().unwrap().iter().any(|rule| rule["errnoRet"] == ENOSYS));
    }

    #[test]
    fn no_name_is_listed_twice() {
        let names: Vec<&str> = ALWAYS.split_whitespace().collect();
        let unique: std::collections::BTreeSet<&&str> = names.iter().collect();
        assert_eq!(names.len(), unique.len());
    }
}
