// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

/* What the child must not share with its zygote, whose open files it has inherited. */
#include "zygote.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/syscall.h>
#include <unistd.h>

#define EVENTFD "anon_inode:[eventfd]"
#define SIGNALFD "anon_inode:[signalfd]"

enum { MOST_EVENTS = 64, MOST_SHARES = 8 };

static struct {
	int fd;
	bool signals; /* a signalfd, else an eventfd */
} events[MOST_EVENTS];
static int event_count;
static struct {
	int fd, flags;
} shares[MOST_SHARES];
static int share_count;
static char share_path[32];

struct inspection {
	const struct order *order;
	const struct given *given;
	const char *error;
};

static bool starts(const char *text, const char *with) { return strncmp(text, with, strlen(with)) == 0; }

static bool is_target(const struct order *o, int fd)
{
	for (uint32_t i = 0; i < o->file_count; i++)
		if (o->targets[i] == fd)
			return true;
	return false;
}

static bool is_given(const struct order *o, const struct given *g, int fd)
{
	if (fd == control_fd || fd == g->control)
		return true;
	for (uint32_t i = 0; i < o->file_count; i++)
		if (g->files[i] == fd)
			return true;
	return false;
}

static int inspect(int fd, void *data)
{
	struct inspection *i = data;
	char path[64], what[128];
	ssize_t n;

	if (is_given(i->order, i->given, fd) || is_target(i->order, fd))
		return 0;
	snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
	n = readlink(path, what, sizeof what - 1);
	if (n < 0)
		return 0; /* that of the listing itself */
	what[n] = 0;
	if (strcmp(what, EVENTFD) == 0 || strcmp(what, SIGNALFD) == 0) {
		if (event_count == MOST_EVENTS)
			return i->error = "there are too many eventfds", 1;
		events[event_count].fd = fd;
		events[event_count++].signals = strcmp(what, SIGNALFD) == 0;
		return 0;
	}
	if (strcmp(what, i->order->export) == 0) {
		if (share_count == MOST_SHARES)
			return i->error = "the share is open too often", 1;
		shares[share_count].fd = fd;
		shares[share_count++].flags = fcntl(fd, F_GETFL);
		return 0;
	}
	/* A connection that is still open is about to be closed, as the driver has left, and so is a file of the share. */
	if (starts(what, "socket:") || starts(what, i->order->export))
		return i->error = "busy", 1;
	/* Devices without a state, and files that nobody can write to and whose position does not matter. */
	if (starts(what, "/dev/") || starts(what, "/memfd:guest-") || starts(what, "/guest/"))
		return 0;
	return i->error = "it has open what a child cannot inherit", 1;
}

const char *check_descriptors(const struct order *o, const struct given *g)
{
	struct inspection i = { o, g, NULL };

	event_count = share_count = 0;
	snprintf(share_path, sizeof share_path, "%s", o->export);
	if (each_entry("/proc/self/fd", inspect, &i) < 0)
		return "the descriptors cannot be listed";
	return i.error;
}

/* Of a signalfd, too, as its set of signals could be changed for all who share it. */
static const char *renew_event(int fd, bool signals)
{
	const char *field = signals ? "sigmask:" : "eventfd-count:";
	char path[64], text[512], *at;
	int fresh, flags = fcntl(fd, F_GETFL);
	uint64_t value;

	snprintf(path, sizeof path, "/proc/self/fdinfo/%d", fd);
	if (flags < 0 || read_file(path, text, sizeof text) < 0 || (at = strstr(text, field)) == NULL)
		return "an eventfd cannot be read";
	value = strtoull(at + strlen(field), NULL, 16);
	flags &= O_NONBLOCK; /* which the flags of both are */
	fresh = signals ? syscall(SYS_signalfd4, -1, &value, sizeof value, O_CLOEXEC | flags) : eventfd(value, O_CLOEXEC | flags);
	if (fresh < 0 || dup3(fresh, fd, O_CLOEXEC) < 0)
		return "an eventfd cannot be replaced";
	close(fresh);
	return NULL;
}

const char *replace_descriptors(const struct order *o, const struct given *g)
{
	for (uint32_t i = 0; i < o->file_count; i++) {
		if (dup3(g->files[i], o->targets[i], o->targets[i] > 2 ? O_CLOEXEC : 0) < 0)
			return "a descriptor cannot be put into its place";
		close(g->files[i]);
	}
	for (int i = 0; i < event_count; i++) {
		const char *error = renew_event(events[i].fd, events[i].signals);

		if (error != NULL)
			return error;
	}
	return NULL;
}

/* The share is a new file system: QEMU holds its root open. */
const char *reopen_share(void)
{
	for (int i = 0; i < share_count; i++) {
		int fresh = open(share_path, (shares[i].flags & (O_ACCMODE | O_PATH | O_NOFOLLOW | O_NONBLOCK)) | O_DIRECTORY | O_CLOEXEC);

		if (fresh < 0 || dup3(fresh, shares[i].fd, O_CLOEXEC) < 0)
			return "the share cannot be opened";
		close(fresh);
	}
	return NULL;
}
