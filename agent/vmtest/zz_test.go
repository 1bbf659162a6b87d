package vmtest_test
import ("testing";"bulkhead/agent/vmtest";"fmt";"os";"strings";"strconv"
specs "github.com/opencontainers/runtime-spec/specs-go")
func cpu() float64 { b,_:=os.ReadFile(fmt.Sprintf("/proc/%d/stat",vmtest.PID)); f:=strings.Fields(string(b)); u,_:=strconv.Atoi(f[13]); s,_:=strconv.Atoi(f[14]); return float64(u+s)*10 }
func TestZZ(t *testing.T){
	vm := vmtest.Boot(t)
	boot := cpu()
	var cr, ex float64
	sec := os.Getenv("ZZSEC")=="off"
	var c0 float64
	for i:=range 6 {
	b:=cpu()
	c := create(t, vm, fmt.Sprintf("c%d",i), process("sleep","1000"), func(s *specs.Spec){ if sec { s.Linux.Seccomp=nil }})
	if i>0 {cr+=cpu()-b} else {c0=cpu()-b}
	c.start(t)
	b=cpu()
	for j:=range 6 { e:=c.exec(t,fmt.Sprint(j),process("true")); exit(t,e)}
	if i>0 {ex+=cpu()-b}
	c.delete(t) }
	t.Logf("CPU ms: boot to ready %.0f, first create %.0f, create %.0f exec %.0f", boot, c0, cr/5, ex/30)
}
