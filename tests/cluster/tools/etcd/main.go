// Command etcd is the etcd server, built from its library: "go install" refuses the published
// main package because its go.mod carries replace directives.
package main

import (
	"os"

	"go.etcd.io/etcd/server/v3/etcdmain"
)

func main() {
	etcdmain.Main(os.Args)
}
