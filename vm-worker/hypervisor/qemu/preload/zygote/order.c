// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

/* The order to fork, from the driver; each is answered by one message. */
#include "zygote.h"

#include <errno.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

static ssize_t receive(struct order *o, struct given *g)
{
	union {
		struct cmsghdr header;
		char space[CMSG_SPACE((ORDER_FILES + 1) * sizeof(int))];
	} rights;
	struct iovec part = { o, sizeof *o };
	struct msghdr message = { .msg_iov = &part, .msg_iovlen = 1, .msg_control = &rights, .msg_controllen = sizeof rights };
	struct cmsghdr *c;
	ssize_t n;
	int files[ORDER_FILES + 1], count = 0;

	do
		n = recvmsg(control_fd, &message, MSG_CMSG_CLOEXEC);
	while (n < 0 && errno == EINTR);
	if (n <= 0)
		return n;
	for (c = CMSG_FIRSTHDR(&message); c != NULL; c = CMSG_NXTHDR(&message, c)) {
		if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS)
			continue;
		count = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);
		memcpy(files, CMSG_DATA(c), count * sizeof(int));
	}
	if (n != sizeof *o || o->version != ORDER_VERSION || o->file_count > ORDER_FILES || count != (int)o->file_count + 1) {
		for (int i = 0; i < count; i++)
			close(files[i]);
		return -1;
	}
	g->control = files[0];
	memcpy(g->files, files + 1, o->file_count * sizeof(int));
	return n;
}

static void say(int fd, const char *text) { send(fd, text, strlen(text), MSG_NOSIGNAL); }

/* The child, all of whose other threads are still missing. */
static const char *begin(const struct order *o, const struct given *g)
{
	const char *error;

	if ((error = replace_descriptors(o, g)) != NULL)
		return error;
	if ((error = enter_jail(o)) != NULL || (error = reopen_share()) != NULL)
		return error;
	if (o->mergeable)
		merge_memory();
	rename_process(o->own_name, o->name);
	/* Capabilities are each thread's own, and inherited; the filter then is for all. */
	if ((error = drop_capabilities(o->capabilities)) != NULL || (error = revive_threads()) != NULL)
		return error;
	if ((error = apply_filter()) != NULL)
		return error;
	return renew_generation();
}

static void become(const struct order *o, const struct given *g)
{
	const char *error;
	char word[8];
	ssize_t n;

	close(control_fd);
	control_fd = -1;
	/* Nothing is done before the driver has written down that this process exists. */
	do
		n = recv(g->control, word, sizeof word, 0);
	while (n < 0 && errno == EINTR);
	if (n <= 0)
		_exit(1);
	error = begin(o, g);
	say(g->control, error != NULL ? error : "ready");
	if (error != NULL)
		_exit(1);
	close(g->control);
}

int obey(void)
{
	struct order order;
	struct given given;
	const char *error;
	char answer[64];
	ssize_t n = receive(&order, &given);
	long child = -1;

	if (n == 0)
		_exit(0); /* whoever could give orders is gone */
	if (n < 0) {
		say(control_fd, "the order is not understood");
		return 0;
	}
	error = have_filter ? find_generation() : "QEMU has no filter of system calls that its child could be put under";
	if (error == NULL && (error = park_threads()) == NULL) {
		error = check_descriptors(&order, &given);
		if (error == NULL) {
			child = fork_parked(CLONE_PARENT | CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWIPC | CLONE_NEWUTS | CLONE_NEWNET);
			if (child == 0) {
				become(&order, &given);
				return 1;
			}
			if (child < 0)
				error = strerrordesc_np(errno);
		}
		release_threads();
	}
	close(given.control);
	for (uint32_t i = 0; i < order.file_count; i++)
		close(given.files[i]);
	if (error == NULL)
		snprintf(answer, sizeof answer, "forked %ld", child);
	say(control_fd, error != NULL ? error : answer);
	return 0;
}
