/* Make chosen system calls fail, or kill the process, from outside: LD_PRELOAD this.
 *
 * FAULT_RULES holds one rule a line: call|part of the path|action|first|last|counter file
 *   call    open (for reading), create (open for writing), read (any way of reading), write, rename, mkdir, unlink
 *   action  an errno to fail with, or "kill" to die on the spot by SIGKILL
 *   first, last  which occurrences are struck, counted from 1 over all processes by the length of the counter file
 *
 * The counter is a file that grows by one byte an occurrence: appending is atomic, so it counts across processes.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdlib.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <unistd.h>

static long count_one(const char *counter) {
    int fd = (int)syscall(SYS_openat, AT_FDCWD, counter, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
    struct stat found;
    if (fd < 0) return 0;
    syscall(SYS_write, fd, ".", 1);
    long length = fstat(fd, &found) == 0 ? (long)found.st_size : 0;
    syscall(SYS_close, fd);
    return length;
}

/* 0 when the call may go on; otherwise errno is set. */
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
        if (n != 6 || strcmp(fields[0], call) != 0 || !strstr(path, fields[1])) continue;
        long number = count_one(fields[5]);
        if (number < atol(fields[3]) || number > atol(fields[4])) continue;
        if (strcmp(fields[2], "kill") == 0) kill(getpid(), SIGKILL);
        answer = atoi(fields[2]);
    }
    free(copy);
    errno = answer ? answer : saved;
    return answer;
}

static int struck_fd(const char *call, int fd) {
    char link[64], path[4096];
    if (!getenv("FAULT_RULES")) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0) return 0;
    path[length] = 0;
    return struck(call, path);
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
        return struck(OPENING(flags), path) ? -1 : real(path, flags, mode); \
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
        return struck(OPENING(flags), path) ? -1 : real(folder, path, flags, mode); \
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
    return struck_fd("write", fd) ? -1 : real(fd, buffer, length);
}

int rename(const char *from, const char *to) {
    REAL(rename);
    return struck("rename", to) ? -1 : real(from, to);
}

int renameat(int from_folder, const char *from, int to_folder, const char *to) {
    REAL(renameat);
    return struck("rename", to) ? -1 : real(from_folder, from, to_folder, to);
}

int mkdir(const char *path, mode_t mode) {
    REAL(mkdir);
    return struck("mkdir", path) ? -1 : real(path, mode);
}

int unlink(const char *path) {
    REAL(unlink);
    return struck("unlink", path) ? -1 : real(path);
}
