// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

// What the tests' containers do that busybox cannot: sockets in the abstract namespace.
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

static int fail(const char *what) {
	printf("%s: %s\n", what, strerror(errno));
	return 1;
}

int main(int argc, char **argv) {
	struct sockaddr_un at = {.sun_family = AF_UNIX, .sun_path = "\0bulkhead"};
	int fd = socket(AF_UNIX, SOCK_STREAM, 0);
	setvbuf(stdout, NULL, _IONBF, 0);
	if (fd < 0 || argc != 2) return fail("socket");
	if (!strcmp(argv[1], "connect")) {
		if (connect(fd, (struct sockaddr *)&at, sizeof at)) return fail("connect");
		puts("connected");
		return 0;
	}
	if (bind(fd, (struct sockaddr *)&at, sizeof at) || listen(fd, 8)) return fail("listen");
	puts("listening");
	for (;;) close(accept(fd, NULL, NULL));
}
