// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

/*
 * Preloaded into QEMU before 9.2, so that containers can make FIFOs, sockets and
 * device nodes on their root file system.
 *
 * The fix of CVE-2023-2861 has QEMU's 9p server refuse, after an fstat, every file
 * it opened that is neither regular nor a directory: a device or a FIFO on the share
 * must not be read or written by the host. By mistake it refuses descriptors
 * opened with O_PATH too, which can do neither, and by which the server sets
 * the mode of the node it has just made; so Tmknod always fails with ENXIO, and with
 * it bind(2) of every unix socket. QEMU 9.2 lets O_PATH pass ("9pfs: fix
 * regression regarding CVE-2023-2861"). This does the same from outside: a
 * special file held by an O_PATH descriptor, and nothing else, looks regular
 * to fstat. What the fix is for stays refused.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

/* Symbolic links are no special files: the server has to see them. */
static int special(mode_t mode)
{
	return S_ISFIFO(mode) || S_ISSOCK(mode) || S_ISCHR(mode) || S_ISBLK(mode);
}

int fstat64(int fd, struct stat64 *st)
{
	int flags;

	if (syscall(SYS_fstat, fd, st) != 0)
		return -1;
	if (special(st->st_mode)) {
		flags = fcntl(fd, F_GETFL);
		if (flags != -1 && (flags & O_PATH))
			st->st_mode = (st->st_mode & ~S_IFMT) | S_IFREG;
	}
	return 0;
}

/* One symbol or the other is called, as the program was compiled. On x86-64 both
 * structures, and the kernel's, are the same. */
int fstat(int fd, struct stat *st)
{
	return fstat64(fd, (struct stat64 *)st);
}
