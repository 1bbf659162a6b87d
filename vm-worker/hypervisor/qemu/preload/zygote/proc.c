// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

/* Files without the C library's buffers and locks. */
#include "zygote.h"

#include <fcntl.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

int read_file(const char *path, char *buffer, size_t size)
{
	ssize_t n, have = 0;
	int fd = open(path, O_RDONLY | O_CLOEXEC);

	if (fd < 0)
		return -1;
	while ((size_t)have < size - 1 && (n = read(fd, buffer + have, size - 1 - have)) > 0)
		have += n;
	close(fd);
	buffer[have] = 0;
	return have;
}

bool write_file(const char *path, const char *text)
{
	size_t length = strlen(text);
	int fd = open(path, O_WRONLY | O_CLOEXEC);
	bool done;

	if (fd < 0)
		return false;
	done = write(fd, text, length) == (ssize_t)length;
	close(fd);
	return done;
}

struct entry {
	uint64_t inode;
	int64_t offset;
	unsigned short length;
	unsigned char type;
	char name[];
};

/* Visits the numbers that a directory of /proc has as names, until visit returns something else than 0. */
int each_entry(const char *directory, int (*visit)(int, void *), void *data)
{
	_Alignas(8) char buffer[4096];
	long n;
	int number, result = 0;
	int fd = open(directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC);

	if (fd < 0)
		return -1;
	while (result == 0 && (n = syscall(SYS_getdents64, fd, buffer, sizeof buffer)) > 0) {
		for (long at = 0; at < n && result == 0;) {
			struct entry *e = (struct entry *)(buffer + at);

			at += e->length;
			number = 0;
			for (const char *c = e->name; *c != 0 && number >= 0; c++)
				number = *c >= '0' && *c <= '9' ? number * 10 + *c - '0' : -1;
			if (number >= 0 && number != fd)
				result = visit(number, data);
		}
	}
	close(fd);
	return result;
}
