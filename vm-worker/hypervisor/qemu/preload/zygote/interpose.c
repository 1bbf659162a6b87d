// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

/* The few calls of QEMU and its libraries that are another in a zygote. */
#include "zygote.h"

#include <dlfcn.h>
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

int control_fd = -1;
int park_signal;
struct guest_memory guest_memory[MOST_MEMORIES];
int guest_memories;

static pid_t main_thread;

__attribute__((constructor)) static void begin_zygote(void)
{
	const char *number = getenv("BULKHEAD_ZYGOTE");

	if (number == NULL)
		return;
	main_thread = syscall(SYS_gettid);
	park_signal = SIGRTMAX - 1;
	control_fd = atoi(number);
	unsetenv("BULKHEAD_ZYGOTE");
}

/*
 * The main loop waits here, with no lock of QEMU's held: so this is where orders are
 * looked for. The child of one returns from the same call as if it had been interrupted.
 */
int ppoll(struct pollfd *fds, nfds_t count, const struct timespec *timeout, const sigset_t *mask)
{
	enum { MOST = 256 };
	struct pollfd more[MOST];
	struct timespec left;
	int n;

	if (timeout != NULL)
		left = *timeout; /* the kernel writes what is left of it */
	if (control_fd < 0)
		watch_translations();
	if (control_fd < 0 || count + 1 > MOST || syscall(SYS_gettid) != main_thread)
		return syscall(SYS_ppoll, fds, count, timeout ? &left : NULL, mask, 8);
	memcpy(more, fds, count * sizeof *fds);
	more[count] = (struct pollfd){ .fd = control_fd, .events = POLLIN };
	n = syscall(SYS_ppoll, more, count + 1, timeout ? &left : NULL, mask, 8);
	if (n < 0)
		return n;
	if (more[count].revents != 0) {
		n--;
		if (obey()) { /* what was seen was the zygote's */
			errno = EINTR;
			return -1;
		}
	}
	memcpy(fds, more, count * sizeof *fds);
	return n;
}

/*
 * QEMU keeps its guest's memory out of children (MADV_DONTFORK), as those that it
 * knows only execute helpers. It says so of each piece of that memory, and of nothing else.
 */
int madvise(void *start, size_t length, int advice)
{
	if (control_fd >= 0 && advice == MADV_DONTFORK) {
		if (guest_memories < MOST_MEMORIES)
			guest_memory[guest_memories++] = (struct guest_memory){ start, length };
		return 0;
	}
	return syscall(SYS_madvise, start, length, advice);
}

/* No thread may be without the signal that parks it; QEMU's block all there are. */
int pthread_sigmask(int how, const sigset_t *set, sigset_t *old)
{
	static int (*real)(int, const sigset_t *, sigset_t *);
	sigset_t all_but_one;

	if (real == NULL)
		*(void **)&real = dlsym(RTLD_NEXT, "pthread_sigmask");
	if (set != NULL && how != SIG_UNBLOCK && control_fd >= 0) {
		all_but_one = *set;
		sigdelset(&all_but_one, park_signal);
		set = &all_but_one;
	}
	return real(how, set, old);
}

/* Neither of these can be inherited by a child that is to have its own; QEMU does without. */
int epoll_create1(int flags)
{
	if (control_fd >= 0) {
		errno = ENOSYS;
		return -1;
	}
	return syscall(SYS_epoll_create1, flags);
}

int io_uring_queue_init(unsigned entries, void *ring, unsigned flags)
{
	static int (*real)(unsigned, void *, unsigned);

	if (control_fd >= 0)
		return -ENOSYS;
	if (real == NULL)
		*(void **)&real = dlsym(RTLD_NEXT, "io_uring_queue_init");
	return real != NULL ? real(entries, ring, flags) : -ENOSYS;
}

/* QEMU's own filter forbids what makes a child; each child is put under it. */
int seccomp_load(void *context)
{
	static int (*real)(void *);

	if (control_fd >= 0) {
		keep_filter(context);
		return 0;
	}
	if (real == NULL)
		*(void **)&real = dlsym(RTLD_NEXT, "seccomp_load");
	return real != NULL ? real(context) : -ENOSYS;
}
