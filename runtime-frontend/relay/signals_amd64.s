// Copyright the Bulkhead authors.
// SPDX-License-Identifier: Apache-2.0

#include "textflag.h"

// func rawHandler() (handler, restorer uintptr)
TEXT ·rawHandler(SB), NOSPLIT, $0-16
	LEAQ handle<>(SB), AX
	MOVQ AX, handler+0(FP)
	LEAQ restore<>(SB), AX
	MOVQ AX, restorer+8(FP)
	RET

// handle is called by the kernel as C would: signal in DI, siginfo_t in SI. It
// touches nothing of Go's and makes one system call at most, so it may interrupt
// anything; the kernel saves and restores every register around it. It keeps
// to one byte and a pipe that does not block: what does not fit is lost, after 65536 unread ones.
TEXT handle<>(SB), NOSPLIT|NOFRAME, $0
	MOVL 8(SI), AX   // si_code
	CMPL AX, $0
	JGT  kernel      // the kernel's own: SI_KERNEL, CLD_EXITED, ...
	CMPL AX, $-2     // SI_TIMER: no process sends that
	JEQ  done
	MOVL 16(SI), CX  // si_pid
	CMPL CX, ·handlerPid(SB)
	JEQ  done        // SIGURG of the runtime, SIGPIPE of a write
	JMP  tell

kernel:
	CMPL DI, $17 // SIGCHLD
	JNE  done
	XORL DI, DI  // childEnded

tell:
	PUSHQ DI
	MOVQ  SP, SI                // the byte, as the processor is little-endian
	MOVL  ·handlerPipe(SB), DI
	MOVL  $1, DX
	MOVL  $1, AX                // write
	SYSCALL
	POPQ  DI

done:
	RET

// restore is where the kernel has the handler return to.
TEXT restore<>(SB), NOSPLIT|NOFRAME, $0
	MOVL $15, AX // rt_sigreturn
	SYSCALL
	INT  $3
