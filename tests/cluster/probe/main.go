// Command probe is what the rig's own tests run in pods: it serves, resolves and fetches, and needs
// no C library and no shell.
package main

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"time"
)

func serve(address string) error {
	name, _ := os.Hostname()
	http.HandleFunc("/", func(answer http.ResponseWriter, _ *http.Request) {
		fmt.Fprintf(answer, "hello from %s\n", name)
	})
	fmt.Printf("%s serves on %s\n", name, address)
	return http.ListenAndServe(address, nil)
}

func resolve(name string) error {
	addresses, err := net.LookupHost(name)
	fmt.Println(strings.Join(addresses, " "))
	return err
}

func fetch(url string) error {
	client := http.Client{Timeout: 3 * time.Second}
	answer, err := client.Get(url)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	_, err = io.Copy(os.Stdout, answer.Body)
	return err
}

func dial(address string) error {
	connection, err := net.DialTimeout("tcp", address, 3*time.Second)
	if err != nil {
		return err
	}
	return connection.Close()
}

func write(path string) error {
	return os.WriteFile(path, []byte("written by a pod\n"), 0o644)
}

func main() {
	verbs := map[string]func(string) error{
		"serve": serve, "resolve": resolve, "fetch": fetch, "dial": dial, "write": write,
	}
	if len(os.Args) != 3 || verbs[os.Args[1]] == nil {
		fmt.Fprintln(os.Stderr, "usage: probe serve|resolve|fetch|dial|write ARGUMENT")
		os.Exit(2)
	}
	if err := verbs[os.Args[1]](os.Args[2]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
