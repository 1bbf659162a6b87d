// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

/* Threads that survive a fork. x86-64 and the GNU C library. */
#include "zygote.h"

#include <errno.h>
#include <limits.h>
#include <linux/futex.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/rseq.h>
#include <sys/syscall.h>
#include <time.h>
#include <ucontext.h>
#include <unistd.h>

#ifndef __x86_64__
#error "only x86-64 is known here"
#endif

enum { MOST_THREADS = 64, NAME = 16 };

/* How long a thread may take until it stands still. All wait in the kernel while the VM is stopped. */
enum { PARK_SECONDS = 5 };

static struct parked {
	ucontext_t *context; /* in the signal's frame, to which the thread returns */
	char *tls;           /* the C library's descriptor of the thread, which begins with its own address */
	void *robust;
	pid_t number;
	char name[NAME];
} parked[MOST_THREADS];

static atomic_int slots, arrived, held, round_number;
static int expected;
static long number_offset = -1; /* of the thread's number in its descriptor */

static char *own_tls(void)
{
	char *tls;

	__asm__("mov %%fs:0, %0" : "=r"(tls));
	return tls;
}

static long futex(atomic_int *word, int operation, int value, const struct timespec *timeout)
{
	return syscall(SYS_futex, word, operation | FUTEX_PRIVATE_FLAG, value, timeout, NULL, 0);
}

static void *robust_list(void)
{
	void *head = NULL;
	size_t length;

	syscall(SYS_get_robust_list, 0, &head, &length);
	return head;
}

static void on_park(int signal, siginfo_t *info, void *context)
{
	int before = errno;
	int mine = atomic_load(&round_number);
	int slot = atomic_fetch_add(&slots, 1);

	(void)signal, (void)info;
	if (slot < MOST_THREADS) {
		parked[slot].context = context;
		parked[slot].tls = own_tls();
		parked[slot].robust = robust_list();
		parked[slot].number = syscall(SYS_gettid);
	}
	atomic_fetch_add(&arrived, 1);
	futex(&arrived, FUTEX_WAKE, 1, NULL);
	/* The next round may begin before a thread has woken up from this one: it has to come again. */
	while (atomic_load(&held) && atomic_load(&round_number) == mine)
		futex(&round_number, FUTEX_WAIT, mine, NULL);
	errno = before;
}

static int park(int number, void *data)
{
	(void)data;
	if (number == syscall(SYS_gettid))
		return 0;
	if (syscall(SYS_tgkill, getpid(), number, park_signal) == 0)
		expected++;
	return 0;
}

void release_threads(void)
{
	atomic_store(&held, 0);
	atomic_fetch_add(&round_number, 1);
	futex(&round_number, FUTEX_WAKE, INT_MAX, NULL);
}

/* The C library's descriptor of a thread holds its number, at an offset that it does not tell. */
static bool find_number_offset(void)
{
	char *tls = own_tls();
	pid_t own = syscall(SYS_gettid);

	for (long at = 0; at < 0x700; at += sizeof(pid_t)) {
		int same = memcmp(tls + at, &own, sizeof own) == 0;

		for (int i = 0; same && i < expected; i++)
			same = memcmp(parked[i].tls + at, &parked[i].number, sizeof(pid_t)) == 0;
		if (same) {
			number_offset = at;
			return true;
		}
	}
	return false;
}

static int count_thread(int number, void *data)
{
	(void)number;
	++*(int *)data;
	return 0;
}

const char *park_threads(void)
{
	struct sigaction action = { .sa_sigaction = on_park, .sa_flags = SA_SIGINFO | SA_RESTART };
	struct timespec now, end;
	int have, threads;
	char path[64];

	sigfillset(&action.sa_mask);
	if (sigaction(park_signal, &action, NULL) != 0)
		return "the signal that stops threads cannot be handled";
	expected = 0;
	atomic_store(&slots, 0);
	atomic_store(&arrived, 0);
	atomic_store(&held, 1);
	if (each_entry("/proc/self/task", park, NULL) != 0) {
		release_threads();
		return "the threads cannot be listed";
	}
	clock_gettime(CLOCK_MONOTONIC, &end);
	end.tv_sec += PARK_SECONDS;
	while ((have = atomic_load(&arrived)) < expected) {
		struct timespec step = { .tv_nsec = 100000000 };

		if (futex(&arrived, FUTEX_WAIT, have, &step) == 0 || errno == EAGAIN)
			continue;
		threads = 0; /* one that was told to stop may have been about to end */
		if (each_entry("/proc/self/task", count_thread, &threads) == 0 && threads == have + 1) {
			expected = have;
			break;
		}
		clock_gettime(CLOCK_MONOTONIC, &now);
		if (now.tv_sec >= end.tv_sec) {
			release_threads();
			return "a thread does not stop";
		}
	}
	threads = 0;
	/*
	 * Nobody is left to make a further one, unless it was made meanwhile. A thread that came to an earlier stop too
	 * late for it may have taken its place before the places were counted anew.
	 */
	if (expected > MOST_THREADS || each_entry("/proc/self/task", count_thread, &threads) != 0 || threads != expected + 1 ||
	    atomic_load(&slots) != expected) {
		release_threads();
		return expected > MOST_THREADS ? "there are too many threads" : "busy";
	}
	if (!find_number_offset()) {
		release_threads();
		return "this C library keeps the numbers of threads at an unknown place";
	}
	for (int i = 0; i < expected; i++) {
		snprintf(path, sizeof path, "/proc/self/task/%d/comm", parked[i].number);
		read_file(path, parked[i].name, NAME);
		parked[i].name[strcspn(parked[i].name, "\n")] = 0;
	}
	return NULL;
}

/* fork(2) as the kernel has it: the C library's would take the other threads for ended, and their stacks for free. */
long fork_parked(unsigned long flags)
{
	pid_t *number = (pid_t *)(own_tls() + number_offset);
	void *robust = robust_list();
	long child = syscall(SYS_clone, flags | CLONE_CHILD_SETTID | CLONE_CHILD_CLEARTID, NULL, NULL, number, NULL);

	if (child == 0)
		syscall(SYS_set_robust_list, robust, 24); /* which is not inherited */
	return child;
}

/*
 * Makes the thread again: on its own stack, with its own descriptor. It tells the kernel what
 * it had told before (robust futexes, restartable sequences) and returns from its signal handler. Nothing of it is
 * C, as its stack begins with the frame to return by.
 */
static long revive(struct parked *p)
{
	pid_t *number = (pid_t *)(p->tls + number_offset);
	long result;
	register pid_t *child_number __asm__("r10") = number;
	register char *tls __asm__("r8") = p->tls;
	register void *robust __asm__("r12") = p->robust;
	register void *sequences __asm__("r13") = __rseq_size != 0 ? p->tls + __rseq_offset : NULL;

	__asm__ volatile(
		"syscall\n\t"
		"test %%rax, %%rax\n\t"
		"jnz 1f\n\t"
		"mov %[set_robust_list], %%eax\n\t"
		"mov %%r12, %%rdi\n\t"
		"mov $24, %%esi\n\t"
		"syscall\n\t"
		"test %%r13, %%r13\n\t"
		"jz 2f\n\t"
		"mov %[rseq], %%eax\n\t"
		"mov %%r13, %%rdi\n\t"
		"mov $32, %%esi\n\t"
		"xor %%edx, %%edx\n\t"
		"mov %[signature], %%r10d\n\t"
		"syscall\n"
		"2:\n\t"
		"mov %[rt_sigreturn], %%eax\n\t"
		"syscall\n\t"
		"hlt\n"
		"1:\n\t"
		: "=a"(result), "+r"(child_number), "+r"(tls)
		: "0"((long)SYS_clone),
		  "D"((long)(CLONE_VM | CLONE_FS | CLONE_FILES | CLONE_SYSVSEM | CLONE_SIGHAND | CLONE_THREAD |
			     CLONE_SETTLS | CLONE_PARENT_SETTID | CLONE_CHILD_CLEARTID)),
		  "S"(p->context), "d"(number), "r"(robust), "r"(sequences),
		  [set_robust_list] "i"(SYS_set_robust_list), [rseq] "i"(SYS_rseq), [signature] "i"(RSEQ_SIG),
		  [rt_sigreturn] "i"(SYS_rt_sigreturn)
		: "rcx", "r11", "memory", "cc");
	return result;
}

const char *revive_threads(void)
{
	char path[64];

	for (int i = 0; i < expected; i++) {
		long number = revive(&parked[i]);

		if (number < 0)
			return "a thread cannot be made again";
		snprintf(path, sizeof path, "/proc/self/task/%ld/comm", number);
		write_file(path, parked[i].name);
	}
	return NULL;
}
