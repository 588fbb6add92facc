// An agent in Go: MOLTWIRE_URL, and MOLTWIRE_API_KEY of an agent whose endpoint is {"pull": {}}.
package main

import (
	"context"
	"log"
	"os/signal"
	"strings"
	"syscall"

	moltwire "moltwire.dev/client"
)

func shout(_ context.Context, task *moltwire.Task) (any, error) {
	var input struct{ Text string }
	if task.Decode(&input) != nil || input.Text == "" {
		return nil, &moltwire.TaskError{Message: "there is no text to shout"}
	}
	task.Progress(0.5, "shouting")
	return map[string]string{"shouted": strings.ToUpper(input.Text)}, nil
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	options := moltwire.ServeOptions{Capacity: 4, OnProblem: func(err error) { log.Print(err) }}
	if err := moltwire.Connect(moltwire.Options{}).Serve(ctx, shout, options); err != nil {
		log.Fatal(err)
	}
}
