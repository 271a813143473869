// Command nothing ends at once. The benchmark executes it in the place of a plugin: no Go program starts faster.
package main

func main() {}
