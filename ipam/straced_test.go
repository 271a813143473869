package ipam

import (
	"bufio"
	"context"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

// recorded is one system call that changed a file, or a line that the traced program said.
type recorded struct {
	kind   string // write, truncate, sync, create, rename, link, unlink, mkdir, say
	file   *inode // write, truncate, sync of a file; create, link: what the name stands for
	dir    string // sync of a directory
	path   string // create, unlink, mkdir, rename's and link's new name
	old    string // rename's old name
	offset int64
	size   int64 // of a truncate
	data   []byte
	line   string // say
}

func (r recorded) String() string {
	switch r.kind {
	case "write":
		return fmt.Sprintf("write %d at %d of %s", len(r.data), r.offset, r.file.name)
	case "truncate":
		return fmt.Sprintf("truncate %s to %d", r.file.name, r.size)
	case "sync":
		if r.file != nil {
			return "sync " + r.file.name
		}
		return "sync " + r.dir
	case "say":
		return "say " + r.line
	}
	return r.kind + " " + r.old + " " + r.path
}

// inode is a file under the traced directory, whatever its names.
type inode struct {
	name   string // its first
	before []byte // content before the trace
}

// needStrace skips a test where there is no strace.
func needStrace(t testing.TB) {
	t.Helper()
	if _, err := exec.LookPath("strace"); err != nil {
		if os.Getenv("CI") != "" {
			t.Fatal("strace is missing: scripts/install-test-tools.sh installs it")
		}
		t.Skip("strace is missing: scripts/install-test-tools.sh installs it")
	}
}

const tracedCalls = "openat,open,creat,close,dup,dup2,dup3,pwrite64,write,writev,pwritev,pwritev2,ftruncate,truncate,fallocate," +
	"fsync,fdatasync,sync_file_range,rename,renameat,renameat2,link,linkat,unlink,unlinkat,mkdir,mkdirat,rmdir,symlink,symlinkat," +
	"copy_file_range,sendfile,splice,mmap,io_uring_setup"

// trace runs this test's binary with env under strace and returns what it did below root.
func trace(t testing.TB, root string, env ...string) (ops []recorded, before map[string]*inode) {
	t.Helper()
	log := filepath.Join(t.TempDir(), "strace")
	cmd := exec.CommandContext(context.Background(), "strace", "-f", "-qq", "-xx", "-s", "8388608", "--seccomp-bpf",
		"-e", "trace="+tracedCalls, "-e", "signal=none", "-o", log, os.Args[0])
	cmd.Env = append(os.Environ(), env...)
	p := &tracer{t: t, root: root, fds: map[int]*open1{}, inodes: map[string]*inode{}}
	p.before()
	before = maps.Clone(p.inodes)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("strace of %v: %v\n%s", env, err, out)
	}
	f, err := os.Open(log)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	lines := bufio.NewReaderSize(f, 1<<20)
	pending := map[string]string{}
	for {
		line, err := lines.ReadString('\n')
		if line == "" && err != nil {
			break
		}
		pid, call, ok := strings.Cut(strings.TrimRight(line, "\n"), " ")
		call = strings.TrimLeft(call, " ")
		switch {
		case !ok || strings.HasPrefix(call, "+++") || strings.HasPrefix(call, "---"):
		case call == "???( <detached ...>": // a thread that ended before its first call
		case strings.HasSuffix(call, "<unfinished ...>"):
			pending[pid] = strings.TrimSuffix(call, "<unfinished ...>")
			p.begun(pending[pid])
		case strings.HasPrefix(call, "<... "):
			_, rest, _ := strings.Cut(call, " resumed>")
			p.call(pending[pid] + rest)
			delete(pending, pid)
		default:
			p.call(call)
		}
	}
	return p.ops, before
}

// tracer follows the descriptors of a traced program.
type tracer struct {
	t       testing.TB
	root    string
	fds     map[int]*open1
	inodes  map[string]*inode // by their present names
	ops     []recorded
	syncing map[*inode]int // ops that were there when a sync began which has not ended
}

// open1 is an open file, or directory, below root.
type open1 struct {
	file *inode
	dir  string
	at   int64
}

// before notes the files that are there.
func (p *tracer) before() {
	_ = filepath.WalkDir(p.root, func(path string, d os.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			data, err := os.ReadFile(path)
			if err != nil {
				p.t.Fatal(err)
			}
			p.inodes[path] = &inode{name: filepath.Base(path), before: data}
		}
		return nil
	})
}

var callForm = regexp.MustCompile(`^(\w+)\((.*)\)\s+= (-?\d+|0x[0-9a-f]+)`)

// begun fails a trace in which a file is written to while it is synced: who says which write the
// sync covers?
func (p *tracer) begun(call string) {
	if strings.HasPrefix(call, "fsync(") || strings.HasPrefix(call, "fdatasync(") {
		fd, _ := strconv.Atoi(strings.Trim(call[strings.Index(call, "(")+1:], ") "))
		if o := p.fds[fd]; o != nil && o.file != nil {
			if p.syncing == nil {
				p.syncing = map[*inode]int{}
			}
			p.syncing[o.file]++
		}
	}
}

func (p *tracer) call(s string) {
	m := callForm.FindStringSubmatch(s)
	if m == nil {
		p.t.Fatalf("strace: %.200q", s)
	}
	if strings.HasPrefix(m[3], "-") {
		return // failed: nothing happened
	}
	result, _ := strconv.ParseInt(m[3], 0, 64)
	args := splitArgs(m[2])
	num := func(i int) int64 {
		n, err := strconv.ParseInt(args[i], 0, 64)
		if err != nil {
			p.t.Fatalf("strace: argument %d of %.200q", i, s)
		}
		return n
	}
	switch name := m[1]; name {
	case "openat":
		p.open(unhex(p.t, args[1]), args[2], int(result))
	case "close":
		delete(p.fds, int(num(0)))
	case "write":
		p.write(int(num(0)), -1, unhex(p.t, args[1]), result)
	case "pwrite64":
		p.write(int(num(0)), num(3), unhex(p.t, args[1]), result)
	case "ftruncate":
		if o := p.fds[int(num(0))]; o != nil {
			p.ops = append(p.ops, recorded{kind: "truncate", file: o.file, size: num(1)})
		}
	case "fsync", "fdatasync":
		if o := p.fds[int(num(0))]; o != nil {
			p.ops = append(p.ops, recorded{kind: "sync", file: o.file, dir: o.dir})
			delete(p.syncing, o.file)
		}
	case "rename", "renameat", "renameat2", "link", "linkat":
		old, path := args[0], args[1]
		if name != "rename" && name != "link" {
			old, path = args[1], args[3]
		}
		p.name(map[bool]string{true: "rename", false: "link"}[strings.HasPrefix(name, "rename")], unhex(p.t, old), unhex(p.t, path))
	case "unlink":
		p.remove("unlink", unhex(p.t, args[0]))
	case "unlinkat":
		p.remove("unlink", unhex(p.t, args[1]))
	case "mkdirat", "mkdir":
		if path := unhex(p.t, args[len(args)-2]); p.below(path) {
			p.ops = append(p.ops, recorded{kind: "mkdir", path: path})
		}
	case "mmap":
		if strings.Contains(args[2], "PROT_WRITE") && strings.Contains(args[3], "MAP_SHARED") && p.fds[int(num(4))] != nil {
			p.t.Fatalf("the store is written through a mapping: %s", s)
		}
	default:
		for _, a := range args {
			if fd, err := strconv.Atoi(a); err == nil && p.fds[fd] != nil {
				p.t.Fatalf("a call that this trace does not follow: %.200s", s)
			}
		}
	}
}

func (p *tracer) below(path string) bool { return strings.HasPrefix(path, p.root+"/") }

func (p *tracer) open(path, flags string, fd int) {
	delete(p.fds, fd)
	if !p.below(path) && path != p.root {
		return
	}
	known := p.inodes[path]
	switch info, err := os.Stat(path); {
	case known != nil:
	case strings.Contains(flags, "O_CREAT"):
		known = &inode{name: filepath.Base(path)}
		p.inodes[path] = known
		p.ops = append(p.ops, recorded{kind: "create", file: known, path: path})
	case err == nil && info.IsDir(): // the trace is over, the directories are still there
		p.fds[fd] = &open1{dir: path}
		return
	default:
		p.t.Fatalf("%s was opened, but never made", path)
	}
	if strings.Contains(flags, "O_TRUNC") {
		p.ops = append(p.ops, recorded{kind: "truncate", file: known})
	}
	p.fds[fd] = &open1{file: known}
}

func (p *tracer) write(fd int, at int64, data string, n int64) {
	if fd == 1 {
		for _, line := range strings.Split(strings.TrimSpace(data), "\n") {
			p.ops = append(p.ops, recorded{kind: "say", line: line})
		}
		return
	}
	o := p.fds[fd]
	if o == nil {
		return
	}
	if p.syncing[o.file] > 0 {
		p.t.Fatalf("%s is written to while it is synced", o.file.name)
	}
	if at < 0 {
		at = o.at
		o.at += n
	}
	p.ops = append(p.ops, recorded{kind: "write", file: o.file, offset: at, data: []byte(data)[:n]})
}

func (p *tracer) name(kind, old, path string) {
	if !p.below(path) {
		return
	}
	x := p.inodes[old]
	if kind == "rename" {
		delete(p.inodes, old)
	}
	p.inodes[path] = x
	p.ops = append(p.ops, recorded{kind: kind, file: x, old: old, path: path})
}

func (p *tracer) remove(kind, path string) {
	if p.below(path) {
		delete(p.inodes, path)
		p.ops = append(p.ops, recorded{kind: kind, path: path})
	}
}

// splitArgs splits at commas outside of quotes and brackets.
func splitArgs(s string) []string {
	var out []string
	from, depth, quoted := 0, 0, false
	for i := range len(s) {
		switch c := s[i]; {
		case c == '"':
			quoted = !quoted
		case quoted:
		case c == '{' || c == '[' || c == '(':
			depth++
		case c == '}' || c == ']' || c == ')':
			depth--
		case c == ',' && depth == 0:
			out = append(out, strings.TrimSpace(s[from:i]))
			from = i + 1
		}
	}
	return append(out, strings.TrimSpace(s[from:]))
}

// unhex reads a string as -xx prints it: "\x2f\x74".
func unhex(t testing.TB, s string) string {
	if len(s) < 2 || s[0] != '"' || s[len(s)-1] != '"' {
		t.Fatalf("strace: not a whole string: %.100q", s)
	}
	s = s[1 : len(s)-1]
	digit := func(c byte) byte {
		if c >= 'a' {
			return c - 'a' + 10
		}
		return c - '0'
	}
	out := make([]byte, 0, len(s)/4)
	for i := 0; i+3 < len(s); i += 4 {
		out = append(out, digit(s[i+2])<<4|digit(s[i+3]))
	}
	return string(out)
}
