/* LD_PRELOAD library that makes chosen system calls fail, hang or kill the process, and records changes.
 *
 * FAULT_RULES holds one rule per line: call|part of the path|action|first|last|counter file
 *   call    open (for reading), create (open for writing), read (any way of reading), write, fsync, rename, mkdir,
 *           unlink, rmdir; or change: any of these that changes the disk. "worker read" and so on apply only in
 *           processes that the command started.
 *   action  an errno to fail with, "kill" to end the process by SIGKILL, "abort" to end it as a failed assertion does,
 *           "hang" to never return, "stop" to stop the process until it receives SIGCONT, "copy" to copy FAULT_ROOT
 *           and FAULT_JOURNAL next to the counter file, with the occurrence's number appended to their names, and
 *           to continue
 *   first, last  occurrences that the rule applies to, counted from 1 over all processes by the counter file
 *
 * The counter file grows by one byte per occurrence: appending is atomic, so it counts across processes.
 *
 * FAULT_JOURNAL names a file with one line per successful change below FAULT_ROOT: call, tab, path, tab, target of a
 * rename. FAULT_CLOCK=backwards makes the wall clock run backwards from the start of each process.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <stdarg.h>
#include <stdlib.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static int depth; /* 1 in the command, more in its children */

__attribute__((constructor)) static void begin(void) {
    char text[16];
    const char *above = getenv("FAULT_DEPTH");
    depth = (above ? atoi(above) : 0) + 1;
    snprintf(text, sizeof text, "%d", depth);
    setenv("FAULT_DEPTH", text, 1);
}

/* Append one line to a file, atomically. */
static void append(const char *file, const char *text, size_t length) {
    int fd = (int)syscall(SYS_openat, AT_FDCWD, file, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
    if (fd < 0) return;
    syscall(SYS_write, fd, text, length);
    syscall(SYS_close, fd);
}

static void note(const char *call, const char *path, const char *to) {
    const char *journal = getenv("FAULT_JOURNAL"), *root = getenv("FAULT_ROOT");
    char line[8300];
    int saved = errno;
    if (!journal || !root || !path || (!strstr(path, root) && !strstr(to, root))) return;
    int length = snprintf(line, sizeof line, "%s\t%s\t%s\n", call, path, to);
    if (length > 0) append(journal, line, (size_t)length);
    errno = saved;
}

static long count_one(const char *counter) {
    int fd = (int)syscall(SYS_openat, AT_FDCWD, counter, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
    struct stat found;
    if (fd < 0) return 0;
    syscall(SYS_write, fd, ".", 1);
    long length = fstat(fd, &found) == 0 ? (long)found.st_size : 0;
    syscall(SYS_close, fd);
    return length;
}

/* Whether a rule applies to this call in this process. */
static int is_meant(const char *rule, const char *call) {
    if (strncmp(rule, "worker ", 7) == 0) {
        if (depth < 2) return 0;
        rule += 7;
    }
    if (strcmp(rule, "change") == 0) return strcmp(call, "open") != 0 && strcmp(call, "read") != 0;
    return strcmp(rule, call) == 0;
}

/* Copy the state that a kill at this moment would leave. */
static void copy_all(const char *counter, long number) {
    const char *root = getenv("FAULT_ROOT"), *journal = getenv("FAULT_JOURNAL");
    char line[16600], *empty[] = {NULL};
    char *words[] = {"/bin/sh", "-c", line, NULL};
    pid_t child;
    if (!root || !journal) return;
    snprintf(line, sizeof line, "cp -a '%s' '%s.%ld' && cp '%s' '%s.%ld.journal'", root, counter, number, journal,
             counter, number);
    if (posix_spawn(&child, words[0], NULL, NULL, words, empty) == 0) waitpid(child, NULL, 0);
}

/* 0 if the call may continue; otherwise errno is set. */
static int struck(const char *call, const char *path) {
    const char *rules = getenv("FAULT_RULES");
    int saved = errno;
    if (!rules || !path) return 0;
    char *copy = strdup(rules), *line_state = NULL;
    int answer = 0;
    for (char *line = strtok_r(copy, "\n", &line_state); line && !answer; line = strtok_r(NULL, "\n", &line_state)) {
        char *fields[6], *state = NULL;
        int n = 0;
        for (char *part = strtok_r(line, "|", &state); part && n < 6; part = strtok_r(NULL, "|", &state))
            fields[n++] = part;
        if (n != 6 || !is_meant(fields[0], call) || !strstr(path, fields[1])) continue;
        long number = count_one(fields[5]);
        if (number < atol(fields[3]) || number > atol(fields[4])) continue;
        if (strcmp(fields[2], "kill") == 0) kill(getpid(), SIGKILL);
        if (strcmp(fields[2], "abort") == 0) abort();
        if (strcmp(fields[2], "copy") == 0) copy_all(fields[5], number);
        if (strcmp(fields[2], "stop") == 0) raise(SIGSTOP);
        while (strcmp(fields[2], "hang") == 0) pause();
        answer = atoi(fields[2]);
    }
    free(copy);
    errno = answer ? answer : saved;
    return answer;
}

static const char *path_of(int fd, char *path, size_t size) {
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, size - 1);
    if (length < 0) return NULL;
    path[length] = 0;
    return path;
}

static int struck_fd(const char *call, int fd) {
    char path[4096];
    return getenv("FAULT_RULES") ? struck(call, path_of(fd, path, sizeof path)) : 0;
}

static void note_fd(const char *call, int fd) {
    char path[4096];
    int saved = errno;
    if (getenv("FAULT_JOURNAL")) note(call, path_of(fd, path, sizeof path), "");
    errno = saved;
}

/* A path relative to a folder's descriptor. */
static const char *below(int folder, const char *path, char *whole, size_t size) {
    char parent[4096];
    if (path[0] == '/' || folder == AT_FDCWD || !path_of(folder, parent, sizeof parent)) return path;
    snprintf(whole, size, "%s/%s", parent, path);
    return whole;
}

#define REAL(name) \
    static __typeof__(&name) real; \
    if (!real) real = (__typeof__(&name))dlsym(RTLD_NEXT, #name)

#define OPENING(flags) ((flags) & (O_WRONLY | O_RDWR | O_CREAT | O_TRUNC) ? "create" : "open")

#define OPEN_LIKE(name) \
    int name(const char *path, int flags, ...) { \
        REAL(name); \
        va_list rest; \
        va_start(rest, flags); \
        mode_t mode = flags & (O_CREAT | __O_TMPFILE) ? va_arg(rest, mode_t) : 0; \
        va_end(rest); \
        if (struck(OPENING(flags), path)) return -1; \
        int fd = real(path, flags, mode); \
        if (fd >= 0 && flags & O_CREAT) note("create", path, ""); \
        return fd; \
    }
OPEN_LIKE(open)
OPEN_LIKE(open64)

#define OPENAT_LIKE(name) \
    int name(int folder, const char *path, int flags, ...) { \
        REAL(name); \
        va_list rest; \
        va_start(rest, flags); \
        mode_t mode = flags & (O_CREAT | __O_TMPFILE) ? va_arg(rest, mode_t) : 0; \
        va_end(rest); \
        if (struck(OPENING(flags), path)) return -1; \
        int fd = real(folder, path, flags, mode); \
        if (fd >= 0 && flags & O_CREAT) note("create", path, ""); \
        return fd; \
    }
OPENAT_LIKE(openat)
OPENAT_LIKE(openat64)

ssize_t read(int fd, void *buffer, size_t length) {
    REAL(read);
    return struck_fd("read", fd) ? -1 : real(fd, buffer, length);
}

ssize_t pread(int fd, void *buffer, size_t length, off_t offset) {
    REAL(pread);
    return struck_fd("read", fd) ? -1 : real(fd, buffer, length, offset);
}

ssize_t pread64(int fd, void *buffer, size_t length, off64_t offset) {
    REAL(pread64);
    return struck_fd("read", fd) ? -1 : real(fd, buffer, length, offset);
}

ssize_t write(int fd, const void *buffer, size_t length) {
    REAL(write);
    if (struck_fd("write", fd)) return -1;
    ssize_t written = real(fd, buffer, length);
    if (written >= 0) note_fd("write", fd);
    return written;
}

int fsync(int fd) {
    REAL(fsync);
    if (struck_fd("fsync", fd)) return -1;
    int code = real(fd);
    if (code == 0) note_fd("fsync", fd);
    return code;
}

int rename(const char *from, const char *to) {
    REAL(rename);
    if (struck("rename", to)) return -1;
    int code = real(from, to);
    if (code == 0) note("rename", from, to);
    return code;
}

int renameat(int from_folder, const char *from, int to_folder, const char *to) {
    REAL(renameat);
    if (struck("rename", to)) return -1;
    int code = real(from_folder, from, to_folder, to);
    if (code == 0) note("rename", from, to);
    return code;
}

int mkdir(const char *path, mode_t mode) {
    REAL(mkdir);
    if (struck("mkdir", path)) return -1;
    int code = real(path, mode);
    if (code == 0) note("mkdir", path, "");
    return code;
}

#define REMOVE_LIKE(name) \
    int name(const char *path) { \
        REAL(name); \
        if (struck(#name, path)) return -1; \
        int code = real(path); \
        if (code == 0) note(#name, path, ""); \
        return code; \
    }
REMOVE_LIKE(unlink)
REMOVE_LIKE(rmdir)

int unlinkat(int folder, const char *path, int flags) {
    char whole[8200];
    REAL(unlinkat);
    const char *call = flags & AT_REMOVEDIR ? "rmdir" : "unlink", *found = below(folder, path, whole, sizeof whole);
    if (struck(call, found)) return -1;
    int code = real(folder, path, flags);
    if (code == 0) note(call, found, "");
    return code;
}

/* ---- the clock ---- */

int clock_gettime(clockid_t which, struct timespec *now) {
    static struct timespec start;
    const char *kind = getenv("FAULT_CLOCK");
    int code = (int)syscall(SYS_clock_gettime, which, now);
    if (code != 0 || which != CLOCK_REALTIME || !kind || strcmp(kind, "backwards") != 0) return code;
    if (start.tv_sec == 0) start = *now;
    now->tv_sec = 2 * start.tv_sec - now->tv_sec;
    return 0;
}
