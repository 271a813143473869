package forward

// linux/arch/x86/entry/syscalls/syscall_64.tbl
const (
	sysRead      = 0
	sysWrite     = 1
	sysClose     = 3
	sysSocket    = 41
	sysConnect   = 42
	sysSendmsg   = 46
	sysShutdown  = 48
	sysExitGroup = 231
	sysOpenat    = 257
	sysPpoll     = 271
	sysStatx     = 332
)
