// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

// What the tests' containers do that busybox cannot: sockets in the abstract namespace, and bare system calls.
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

static int fail(const char *what) {
	printf("%s: %s\n", what, strerror(errno));
	return 1;
}

static int meet(int listening) {
	struct sockaddr_un at = {.sun_family = AF_UNIX, .sun_path = "\0bulkhead"};
	int fd = socket(AF_UNIX, SOCK_STREAM, 0);
	if (fd < 0) return fail("socket");
	if (!listening) {
		if (connect(fd, (struct sockaddr *)&at, sizeof at)) return fail("connect");
		puts("connected");
		return 0;
	}
	if (bind(fd, (struct sockaddr *)&at, sizeof at) || listen(fd, 8)) return fail("listen");
	puts("listening");
	for (;;) close(accept(fd, NULL, NULL));
}

// What the kernel says about a system call that a filter traps.
static void trapped(int signal, siginfo_t *info, void *context) {
	(void)signal, (void)context;
	printf("trapped %d\n", info->si_syscall);
	_exit(0);
}

static void *call(void *argv) {
	char **args = argv;
	errno = 0;
	if (syscall(atoi(args[0]), args[1] ? atol(args[1]) : 0, 0, 0) < 0)
		printf("error %d\n", errno);
	else
		puts("done");
	return NULL;
}

int main(int argc, char **argv) {
	struct sigaction act = {.sa_sigaction = trapped, .sa_flags = SA_SIGINFO};
	pthread_t thread;
	setvbuf(stdout, NULL, _IONBF, 0);
	if (argc < 2) return 2;
	if (!strcmp(argv[1], "connect")) return meet(0);
	if (!strcmp(argv[1], "listen")) return meet(1);
	if (!strcmp(argv[1], "trap")) sigaction(SIGSYS, &act, NULL);
	if (!strcmp(argv[1], "thread")) {
		if (pthread_create(&thread, NULL, call, argv + 2) || pthread_join(thread, NULL)) return 2;
		puts("the others live");
		return 0;
	}
	call(argv + 2);
	return 0;
}
